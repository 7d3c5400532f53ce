"""Rows on disk as they come, so that an interrupted run goes on where it stopped."""

from dataclasses import asdict
from functools import cache
from pathlib import Path

from aimgraph.errors import ConfigError
from aimgraph.units.code import code_digest, own_code, versions
from aimgraph.units.journal import Journal as Outcomes
from aimgraph.units.runner import Limits, Outcome
from aimgraph.zoo_check.manifest import Task
from aimgraph.zoo_check.rows import CRASHED, TIMEOUT, Row


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
        self._outcomes = Outcomes(path, "a zoo check", limits, fresh=fresh)
        self._own_code = cache(own_code)
        try:
            self._rows = {key: Row(**outcome.data) for key, outcome in self._outcomes.items()}
        except TypeError as error:
            raise ConfigError(f"{path} is no journal of a zoo check; give another --out, or remove it") from error

    def known(self, task: Task) -> Row | None:
        """The row of `task`, if it was run before."""
        return self._rows.get(self._key(task))

    def add(self, task: Task, row: Row) -> None:
        """Keep the row of a task."""
        early = row.status in (TIMEOUT, CRASHED)
        self._outcomes.add(self._key(task), Outcome(asdict(row), (row.reason or row.status) if early else ""))

    def _key(self, task: Task) -> str:
        entry, level = task
        return "|".join((level, repr(entry), *versions(), code_digest(), self._own_code(entry.name)))
