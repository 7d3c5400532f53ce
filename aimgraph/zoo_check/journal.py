"""Rows on disk as they come, so that an interrupted run goes on where it stopped."""

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from aimgraph.errors import ConfigError
from aimgraph.version import __version__
from aimgraph.zoo_check.manifest import Task
from aimgraph.zoo_check.rows import CRASHED, TIMEOUT, Row
from aimgraph.zoo_check.runner import Limits


class Journal:
    """Rows that were computed before, by task.

    Not taken are rows of another aimgraph, torch, torchvision or timm, of another entry or other code
    of one's own model, and, where a process ended early, of other limits.

    Args:
        path: The file; one JSON object per line.
        limits: Of this run.
        fresh: Take no row and start over.

    Raises:
        ConfigError: The file is no journal; it is left as it is.
    """

    def __init__(self, path: Path, limits: Limits, *, fresh: bool = False) -> None:
        self.path, self._limits = path, [limits.seconds, limits.gibibytes]
        self._rows: dict[str, Row] = {}
        self._own_code = cache(_own_code)
        if not path.exists():
            return
        lines = path.read_bytes().split(b"\n")
        try:
            for data in map(json.loads, lines[:-1]):
                row = Row(**data["row"])
                if row.status not in (TIMEOUT, CRASHED) or data["limits"] == self._limits:
                    self._rows[data["key"]] = row
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path} is no journal of a zoo check; give another --out, or remove it") from error
        if fresh:
            self._rows = {}
            path.unlink()
        elif lines[-1]:  # what an interruption cut off
            os.truncate(path, path.stat().st_size - len(lines[-1]))

    def known(self, task: Task) -> Row | None:
        """The row of `task`, if it was run before."""
        return self._rows.get(self._key(task))

    def add(self, task: Task, row: Row) -> None:
        """Keep the row of a task."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": self._key(task), "limits": self._limits, "row": asdict(row)}) + "\n")

    def _key(self, task: Task) -> str:
        entry, level = task
        package = entry.name.partition(":")[0].partition(".")[0] if ":" in entry.name else ""
        return "|".join((level, repr(entry), *_versions(), code_digest(), self._own_code(package)))


@cache
def _versions() -> tuple[str, ...]:
    return torch.__version__, __version__, *map(_version, ("torchvision", "timm"))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


@cache
def code_digest() -> str:
    """What aimgraph's own files are: results of other code are no results."""
    return _digest(Path(__file__).parents[1])


def _own_code(package: str) -> str:
    """What the files of a user's module or package are; of nothing if it can't be found."""
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
