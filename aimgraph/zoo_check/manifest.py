"""Which models a zoo check covers, and with which inputs: a CSV that anybody can write."""

import csv
import fnmatch
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.emit.parts import submodule
from aimgraph.errors import ConfigError
from aimgraph.inputs.arguments import Arguments
from aimgraph.models_zoo.loader import load_model
from aimgraph.zoo_check.rows import write_table

LEVELS = ("structure", "numeric", "onnx", "widen", "source")
"""What can be checked of a model, in the order of what it costs."""


@dataclass(frozen=True)
class Entry:
    """One model of a manifest.

    Attributes:
        name: As for every command: ``timm/NAME``, ``package.module:factory`` ...
        inputs: The inputs, ``2x3x224x224``, joined by ``;``; inferred if empty. One that is no positional float32
            tensor says so: ``tokens=2x128:int64<30522``, by keyword, with numbers below 30522; ``mask=2x128:bool``.
        small: The same for levels that compute; tried out if empty.
        within: Submodule to transform instead of the whole model.
        options: Arguments of the constructor, ``name=value``, joined by ``;``.
        small_options: More of them for levels that compute, e.g. the image size that `small` has.
        family: What models of one kind have in common, for choosing one of each.
        parameters: Size of the model, for choosing small ones; 0 if unknown.
        level: The level to check it at, whatever the run's own is.
        title: What its results are called, where one name is listed with several options; its name if empty.
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
    title: str = ""

    @property
    def called(self) -> str:
        """What its results are called."""
        return self.title or self.name

    def build(self, device: str | None = None, *, small: bool = False) -> nn.Module:
        """The whole model; on `device` ``"meta"``, without values.

        Args:
            device: Where to build it.
            small: Build it for inputs of the shapes in `small`.

        Raises:
            AimgraphError: There is no such model.
        """
        options = dict(_options(self.options)) | (dict(_options(self.small_options)) if small else {})
        with nullcontext() if device is None else torch.device(device):
            return load_model(self.name, **options)

    def part(self, model: nn.Module) -> nn.Module:
        """What of the model is transformed.

        Raises:
            AimgraphError: It has no such submodule.
        """
        return submodule(model, self.within) if self.within else model


Task = tuple[Entry, str]
"""A model and the level to check it at."""


def _options(text: str) -> Iterator[tuple[str, Any]]:
    for part in filter(None, text.split(";")):
        name, _, value = part.partition("=")
        yield name, _value(value)


def _value(text: str) -> Any:
    """``true`` -> True, ``3`` -> 3, ``0.5`` -> 0.5; anything else is a string."""
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", text):
        return float(text)
    return {"true": True, "false": False, "none": None}.get(text, text)


_INPUT = re.compile(
    r"(?:(?P<name>\w+)=)?(?P<sizes>[1-9]\d*(?:x[1-9]\d*)*)(?::(?P<dtype>\w+)(?:<(?P<below>[1-9]\d*))?)?", re.ASCII
)


def _inputs(text: str) -> list[dict[str, str]]:
    found = [_INPUT.fullmatch(part) for part in text.split(";")]
    parts = [match.groupdict("") for match in found if match is not None]
    types = [getattr(torch, part["dtype"] or "float32", None) for part in parts]
    if len(parts) < len(found) or not all(isinstance(dtype, torch.dtype) for dtype in types):
        raise ConfigError(
            f"inputs {text!r}: give sizes joined by x, and several inputs joined by ;, e.g. 2x3x224x224; another type "
            "than float32 after a colon, with the numbers' limit, and a keyword before: tokens=2x128:int64<30522"
        )
    return parts


def shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """``2x3x4;5x6`` -> ((2, 3, 4), (5, 6)).

    Raises:
        ConfigError: `text` has another form.
    """
    return tuple(tuple(int(size) for size in part["sizes"].split("x")) for part in _inputs(text))


def is_images(text: str) -> bool:
    """Whether all inputs are positional images, whose size may be tried."""
    return all(not (part["name"] or part["dtype"]) and part["sizes"].count("x") >= 3 for part in _inputs(text))


def example(text: str, device: str = "cpu") -> Arguments:
    """Inputs as `text` names them: floating point zero, other numbers counting up to their limit, 2 by default."""
    args: list[Tensor] = []
    kwargs: dict[str, Tensor] = {}
    for part, shape in zip(_inputs(text), shapes(text), strict=True):
        dtype = getattr(torch, part["dtype"] or "float32")
        tensor = torch.zeros(shape, dtype=dtype, device=device)
        if not (dtype.is_floating_point or dtype.is_complex):
            count = torch.arange(tensor.numel(), device=device) % int(part["below"] or 2)
            tensor = count.reshape(shape).to(dtype)
        if part["name"]:
            kwargs[part["name"]] = tensor
        else:
            args.append(tensor)
    return tuple(args), kwargs


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
    write_table(path, [item.name for item in fields(Entry)], map(asdict, entries))


def chosen(
    entries: list[Entry], pattern: str | None = None, largest: float | None = None, *, smallest: bool = False
) -> list[Entry]:
    """Some of the entries.

    Args:
        entries: All of them.
        pattern: A glob that the name, with or without its source, has to match.
        largest: Most parameters, in millions; models of unknown size stay.
        smallest: Whether to take the smallest of each family only; a model without a family is one of its own.

    Raises:
        ConfigError: None is left.
    """
    found = entries
    if pattern is not None:
        matches = re.compile(fnmatch.translate(pattern)).match
        found = [e for e in found if matches(e.called) or matches(e.name.partition("/")[2])]
    if largest is not None:
        found = [e for e in found if e.parameters <= largest * 1e6]
    if not found:
        example = f", e.g. {entries[0].name}" if entries else ""
        asked = {"--filter": pattern, "--largest": largest}
        said = " ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
        raise ConfigError(f"{said or 'this list'} leaves none of {len(entries)} models{example}")
    return _smallest(found) if smallest else found


def _smallest(entries: list[Entry]) -> list[Entry]:
    families: dict[tuple[str, str], Entry] = {}
    for entry in sorted(entries, key=lambda entry: (entry.parameters == 0, entry.parameters)):
        families.setdefault((entry.name.partition("/")[0], entry.family) if entry.family else (entry.called, ""), entry)
    return list(families.values())


def to_tasks(entries: list[Entry], level: str) -> list[Task]:
    """Each model once, at its own level or at `level`.

    Raises:
        ConfigError: Two entries whose results are called the same differ.
    """
    tasks: dict[tuple[str, str], Task] = {}
    for entry in entries:
        at = entry.level or level
        same = tasks.setdefault((entry.called, at), (entry, at))[0]
        if replace(same, level="") != replace(entry, level=""):
            raise ConfigError(
                f"two entries for {entry.called} at level {at} differ, so their results could not be told apart: "
                f"{same} and {entry}; give one of them a title"
            )
    return list(tasks.values())
