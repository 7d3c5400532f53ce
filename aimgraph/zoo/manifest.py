"""Which models a zoo check covers, and with which inputs: a CSV that anybody can write."""

import csv
import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.errors import AimgraphError, ConfigError
from aimgraph.models_zoo.loader import ZOO, import_library, load_model

FOLDER = Path(__file__).parent.parent / "models_zoo"
"""Where the manifests and the expected results of the known sources are."""

SOURCES = ("torchvision", "timm", "zoo")


@dataclass(frozen=True)
class Entry:
    """One model of a manifest.

    Attributes:
        name: As for every command: ``timm/NAME``, ``package.module:factory`` ...
        inputs: Shapes of the inputs, ``2x3x224x224``, joined by ``;``; inferred if empty.
        small: The same for levels that compute; tried out if empty.
        within: Submodule to transform instead of the whole model.
        options: Arguments of the constructor, ``name=value``, joined by ``;``.
        family: What models of one kind have in common; a summary counts by it.
        parameters: Size of the model, for choosing small ones; 0 if unknown.
    """

    name: str
    inputs: str = ""
    small: str = ""
    within: str = ""
    options: str = ""
    family: str = ""
    parameters: int = 0

    def build(self, device: str | None = None) -> nn.Module:
        """The model, or the submodule that is transformed; on `device` ``"meta"``, without values.

        Raises:
            AimgraphError: There is no such model.
        """
        options = dict(self._options())
        if device is None:
            model = load_model(self.name, **options)
        else:
            with torch.device(device):
                model = load_model(self.name, **options)
        return model.get_submodule(self.within) if self.within else model

    def _options(self) -> Iterator[tuple[str, Any]]:
        for part in filter(None, self.options.split(";")):
            name, _, value = part.partition("=")
            words: dict[str, Any] = {"true": True, "false": False, "none": None}
            yield name, words.get(value, int(value) if value.isdigit() else value)


def shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """``2x3x4;5x6`` -> ((2, 3, 4), (5, 6)).

    Raises:
        ConfigError: `text` has another form.
    """
    parts = text.split(";")
    if not all(re.fullmatch(r"\d+(x\d+)*", part) for part in parts):
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
    names = [item.name for item in fields(Entry)]
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: {error}") from error
    entries = []
    for number, row in enumerate(rows, start=2):
        unknown = [str(name) for name in row if name not in names]
        if unknown or not row.get("name"):
            raise ConfigError(f"{path}, line {number}: a manifest has the columns {', '.join(names)}; got {unknown}")
        size = row.pop("parameters", "") or "0"
        if not size.isdigit():
            raise ConfigError(f"{path}, line {number}: parameters is {size!r}, not a number")
        entries.append(Entry(**{name: value or "" for name, value in row.items()}, parameters=int(size)))
    return entries


def write_manifest(path: Path, entries: list[Entry]) -> None:
    """Write `entries` as CSV."""
    names = [item.name for item in fields(Entry)]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(names)
        table.writerows([getattr(entry, name) for name in names] for entry in entries)


def chosen(entries: list[Entry], pattern: str | None) -> list[Entry]:
    """The entries whose name, with or without its source, matches the glob `pattern`.

    Raises:
        ConfigError: None does.
    """
    if pattern is None:
        return entries
    found = [
        e for e in entries if any(fnmatch.fnmatchcase(name, pattern) for name in (e.name, e.name.partition("/")[2]))
    ]
    if not found:
        raise ConfigError(f"--filter {pattern!r} matches none of {len(entries)} models, e.g. {entries[0].name}")
    return found


def list_entries(source: str) -> Iterator[Entry]:
    """One entry per model of a source, as its library names them.

    Raises:
        AimgraphError: The library is not installed, or a model of it can't be built.
    """
    if source == "zoo":
        yield from (Entry(f"zoo/{name}", family="zoo") for name in sorted(ZOO))
        return
    library = import_library(source)
    if source == "timm":
        for name in library.list_models():
            yield sized(_timm_entry(library, name))
        return
    for name in library.models.list_models():
        yield sized(_torchvision_entry(library, name))


def _timm_entry(library: Any, name: str) -> Entry:
    config = library.models.get_pretrained_cfg(name, allow_unregistered=True)
    size = "x".join(map(str, config.input_size)) if config is not None else "3x224x224"
    return Entry(f"timm/{name}", inputs=f"2x{size}", family=str(library.models._registry._model_to_module[name]))


def _torchvision_entry(library: Any, name: str) -> Entry:
    """Inputs by task: frames for video, two images for optical flow, and a detector's backbone alone."""
    builder = library.models.get_model_builder(name)
    module = builder.__module__.removeprefix("torchvision.models.")
    family, _, rest = module.partition(".")
    entry = {"name": f"torchvision/{name}", "family": module}
    if family == "video":
        side = 112 if "resnet" in rest else 224
        return Entry(**entry, inputs=f"2x3x16x{side}x{side}")
    if family == "optical_flow":
        return Entry(**entry, inputs="2x3x128x128;2x3x128x128")
    if family == "detection":
        return Entry(**entry, inputs="2x3x224x224", within="backbone", options="weights_backbone=none")
    if family == "segmentation":
        return Entry(**entry, inputs="2x3x224x224", options="weights_backbone=none")
    if family == "quantization":
        return Entry(**entry, inputs="2x3x224x224", options="quantize=true")
    side = 299 if "inception" in name else 224
    return Entry(**entry, inputs=f"2x3x{side}x{side}")


def sized(entry: Entry) -> Entry:
    """The entry with its number of parameters, where the model can be built without values."""
    try:
        size = sum(p.numel() for p in entry.build("meta").parameters())
    except (AimgraphError, RuntimeError, NotImplementedError, TypeError):
        return entry
    return Entry(
        **{item.name: getattr(entry, item.name) for item in fields(Entry) if item.name != "parameters"}, parameters=size
    )
