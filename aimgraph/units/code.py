"""Which code computed something: results of other code are no results."""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from aimgraph.version import __version__


@cache
def versions() -> tuple[str, ...]:
    """Those of torch, aimgraph, torchvision and timm."""
    return torch.__version__, __version__, *map(_version, ("torchvision", "timm"))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


@cache
def code_digest() -> str:
    """Of aimgraph's own files."""
    return _digest(Path(__file__).parents[1])


def own_code(name: str) -> str:
    """Of the files of the module or package that makes a model, where its name is ``package.module:factory``."""
    package = name.partition(":")[0].partition(".")[0] if ":" in name else ""
    if not package:
        return ""
    if os.getcwd() not in sys.path:  # as for the model itself
        sys.path.insert(0, os.getcwd())
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module that no file was read for
        spec = None
    if spec is None:
        return "none"
    return _digest(*map(Path, spec.submodule_search_locations or filter(None, [spec.origin])))


def _digest(*places: Path) -> str:
    digest = hashlib.sha256()
    for place in places:
        for file in _sources(place):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _sources(place: Path) -> Iterator[Path]:
    """The Python files at or below a place, links to folders followed: some packages are links here."""
    if place.is_file():
        yield place
    for folder, below, files in os.walk(place, followlinks=True):
        below.sort()
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(".py"))
