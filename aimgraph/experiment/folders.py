"""Folders of pictures, one for each class, as torchvision's ``ImageFolder`` takes them."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from aimgraph.errors import ConfigError
from aimgraph.experiment.images import Split
from aimgraph.experiment.pictures import ENDINGS, Pictures
from aimgraph.reproducible import generator_of

VALIDATION = ("val", "valid", "validation")
"""Names of a folder with validation examples."""

_NAMED = 5
"""Classes that a message names at most."""


def picture_folders(folder: Path, side: int) -> Split:
    """The pictures below a folder, [B, 3, side, side] in [-1, 1].

    Where the folder holds ``train/`` and ``test/``, these are the parts, and ``val/``, ``valid/`` or ``validation/`` is
    for validation. Where it holds ``train/`` and one of the latter only, that one is the test. Everywhere else the
    folders in it are the classes, and a third of each class is the test, always the same third.

    Args:
        folder: It holds a folder for each class, or parts that do. Pictures may lie deeper inside of a class.
        side: Pictures are given this many pixels a side, see `aimgraph.experiment.pictures.decode`.

    Raises:
        ConfigError: There are no pictures, or the parts have different classes.
    """
    if not folder.is_dir():
        raise ConfigError(f"data.folder: {folder} is no folder: give one with a folder of pictures for each class")
    parts = _parts(folder)
    if not parts:
        return _a_third_held_out(_classes(folder), side)
    found = {name: _classes(path) for name, path in parts.items()}
    for name in parts:
        _same_classes(found, "train", name)
    pictures = {name: _pictures(classes, side) for name, classes in found.items()}
    validation, test = _roles(list(parts))
    return Split(pictures["train"], pictures[test], None if validation is None else pictures[validation])


def _parts(folder: Path) -> dict[str, Path]:
    """Name in lower case -> folder, of the parts; none where the folders are classes."""
    named = {path.name.lower(): path for path in _folders(folder)}
    parts = {name: named[name] for name in ("train", "test", *VALIDATION) if name in named}
    if "train" not in parts or len(parts) == 1:
        return {}
    if len(several := [name for name in VALIDATION if name in parts]) > 1:
        raise ConfigError(f"data.folder: {folder} holds {' and '.join(several)}: keep one of them")
    return parts


def _roles(names: list[str]) -> tuple[str | None, str]:
    """The part for validation, if there is one, and that for the test."""
    validation = next((name for name in names if name in VALIDATION), None)
    return (validation, "test") if "test" in names else (None, validation or "test")


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Name of a class -> its files, both sorted."""
    found = {path.name: sorted(_files(path), key=lambda file: file.parts) for path in _folders(folder)}
    if not found:
        raise ConfigError(f"data.folder: {folder} holds no folders: put the pictures of each class into one of its own")
    if empty := [name for name, paths in found.items() if not paths]:
        raise ConfigError(
            f"data.folder: in {folder} no pictures ({', '.join(ENDINGS)}) lie below {_told(empty)}: take these away"
        )
    return found


def _files(folder: Path) -> Iterator[Path]:
    """The pictures below a folder; what is hidden is passed over, as a Mac's ``._name.jpg``."""
    for place, below, names in os.walk(folder, followlinks=True, onerror=_refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(place, name) for name in names if name.lower().endswith(ENDINGS) and not name.startswith("."))


def _refuse(error: OSError) -> None:
    """Stop at a folder that can't be read, which `os.walk` passes over."""
    raise ConfigError(f"data.folder: {error.filename} can't be read: {error.strerror}") from error


def _same_classes(found: dict[str, dict[str, list[Path]]], one: str, other: str) -> None:
    lacks = [(a, sorted(found[a].keys() - found[b].keys())) for a, b in ((one, other), (other, one))]
    told = [f"only {name}/ has {_told(classes)}" for name, classes in lacks if classes]
    if told:
        raise ConfigError(
            f"data.folder: {one}/ and {other}/ have to hold the same classes, each a folder: {'; '.join(told)}"
        )


def _told(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _pictures(classes: dict[str, list[Path]], side: int) -> Pictures:
    labels = [label for label, paths in enumerate(classes.values()) for _ in paths]
    return Pictures([path for paths in classes.values() for path in paths], torch.tensor(labels), side)


def _a_third_held_out(classes: dict[str, list[Path]], side: int) -> Split:
    train, test = dict[str, list[Path]](), dict[str, list[Path]]()
    for name, paths in classes.items():
        # By the name of the class, so that the test of a class stays the same where another one is added.
        order = torch.randperm(len(paths), generator=generator_of(f"the test pictures of {name}")).tolist()
        held_out = sorted(order[: (len(paths) + 1) // 3])
        test[name] = [paths[place] for place in held_out]
        train[name] = [paths[place] for place in sorted(set(order) - set(held_out))]
    if not any(test.values()):
        raise ConfigError("data.folder: no class has the two pictures that a test takes: add some")
    return Split(_pictures(train, side), _pictures(test, side))
