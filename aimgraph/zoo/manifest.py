"""Which models a zoo check covers, and with which inputs: a CSV that anybody can write."""

import csv
import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.errors import ConfigError
from aimgraph.models_zoo.loader import load_model

LEVELS = ("structure", "numeric", "onnx")
"""What can be checked of a model, in the order of what it costs."""


@dataclass(frozen=True)
class Entry:
    """One model of a manifest.

    Attributes:
        name: As for every command: ``timm/NAME``, ``package.module:factory`` ...
        inputs: Shapes of the inputs, ``2x3x224x224``, joined by ``;``; inferred if empty.
        small: The same for levels that compute; tried out if empty.
        within: Submodule to transform instead of the whole model.
        options: Arguments of the constructor, ``name=value``, joined by ``;``.
        small_options: More of them for levels that compute, e.g. the image size that `small` has.
        family: What models of one kind have in common, for choosing one of each.
        parameters: Size of the model, for choosing small ones; 0 if unknown.
        level: The level to check it at, whatever the run's own is.
    """

    name: str
    inputs: str = ""
    small: str = ""
    within: str = ""
    options: str = ""
    small_options: str = ""
    family: str = ""
    parameters: int = 0
    level: str = ""

    def build(self, device: str | None = None, *, small: bool = False) -> nn.Module:
        """The model, or the submodule that is transformed; on `device` ``"meta"``, without values.

        Args:
            device: Where to build it.
            small: Build it for inputs of the shapes in `small`.

        Raises:
            AimgraphError: There is no such model.
        """
        options = dict(_options(self.options)) | (dict(_options(self.small_options)) if small else {})
        if device is None:
            model = load_model(self.name, **options)
        else:
            with torch.device(device):
                model = load_model(self.name, **options)
        return model.get_submodule(self.within) if self.within else model


Task = tuple[Entry, str]
"""A model and the level to check it at."""


def _options(text: str) -> Iterator[tuple[str, Any]]:
    for part in filter(None, text.split(";")):
        name, _, value = part.partition("=")
        yield name, _value(value)


def _value(text: str) -> Any:
    """``true`` -> True, ``3`` -> 3, ``0.5`` -> 0.5; anything else is a string."""
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if text in words:
        return words[text]
    for number in (int, float):
        if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text):
            try:
                return number(text)
            except ValueError:
                continue
    return text


def shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """``2x3x4;5x6`` -> ((2, 3, 4), (5, 6)).

    Raises:
        ConfigError: `text` has another form.
    """
    parts = text.split(";")
    if not all(re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", part, re.ASCII) for part in parts):
        raise ConfigError(f"inputs {text!r}: give sizes joined by x, and several inputs joined by ;, e.g. 2x3x224x224")
    return tuple(tuple(int(size) for size in part.split("x")) for part in parts)


def zeros(text: str, device: str = "cpu") -> tuple[Tensor, ...]:
    """Inputs of the shapes that `text` names."""
    return tuple(torch.zeros(shape, device=device) for shape in shapes(text))


def read_manifest(path: Path) -> list[Entry]:
    """The entries of a manifest.

    Raises:
        ConfigError: The file can't be read as one.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: {error}") from error
    entries = []
    for number, row in enumerate(rows, start=2):
        try:
            entries.append(_entry(row))
        except ConfigError as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
    return entries


def _entry(row: dict[str, Any]) -> Entry:
    names = [item.name for item in fields(Entry)]
    unknown = [str(name) for name in row if name not in names]
    if unknown or not row.get("name"):
        problem = f"got {', '.join(unknown)} as well" if unknown else "this one has no name"
        raise ConfigError(f"a model has the columns {', '.join(names)}, of which only name is needed; {problem}")
    cells = {name: value or "" for name, value in row.items()}
    size = cells.pop("parameters", "") or "0"
    if not re.fullmatch(r"\d+", size, re.ASCII):
        raise ConfigError(f"parameters is {size!r}, not a number")
    entry = Entry(**cells, parameters=int(size))
    for text in filter(None, (entry.inputs, entry.small)):
        shapes(text)
    for column, text in (("options", entry.options), ("small_options", entry.small_options)):
        if not all(re.match(r"\w+=", part) for part in filter(None, text.split(";"))):
            raise ConfigError(f"{column} {text!r}: give name=value, several joined by ;")
    if entry.level not in ("", *LEVELS):
        raise ConfigError(f"level is {entry.level!r}; there are {', '.join(LEVELS)}")
    return entry


def write_manifest(path: Path, entries: list[Entry]) -> None:
    """Write `entries` as CSV."""
    names = [item.name for item in fields(Entry)]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(names)
        table.writerows([getattr(entry, name) for name in names] for entry in entries)


def chosen(entries: list[Entry], pattern: str | None = None, largest: float | None = None) -> list[Entry]:
    """Some of the entries.

    Args:
        entries: All of them.
        pattern: A glob that the name, with or without its source, has to match.
        largest: Most parameters, in millions; models of unknown size stay.

    Raises:
        ConfigError: None is left.
    """
    found = entries
    if pattern is not None:
        found = [e for e in found if any(fnmatch.fnmatchcase(name, pattern) for name in _names(e))]
    if largest is not None:
        found = [e for e in found if e.parameters <= largest * 1e6]
    if not found:
        example = f", e.g. {entries[0].name}" if entries else ""
        asked = {"--filter": pattern, "--largest": largest}
        said = " ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
        raise ConfigError(f"{said or 'this list'} leaves none of {len(entries)} models{example}")
    return found


def _names(entry: Entry) -> tuple[str, str]:
    return entry.name, entry.name.partition("/")[2]


def to_tasks(entries: list[Entry], level: str) -> list[Task]:
    """Each model once, at its own level or at `level`.

    Raises:
        ConfigError: Two entries with one name differ: their results could not be told apart.
    """
    tasks: dict[tuple[str, str], Task] = {}
    for entry in entries:
        at = entry.level or level
        same = tasks.setdefault((entry.name, at), (entry, at))[0]
        if replace(same, level="") != replace(entry, level=""):
            raise ConfigError(f"two entries for {entry.name} at level {at} differ: {same} and {entry}")
    return list(tasks.values())
