"""What came of tasks, on disk as it comes, so that an interrupted run goes on where it stopped."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aimgraph.errors import ConfigError
from aimgraph.units.runner import Limits, Outcome

_EARLIER = {"key", "limits", "row"}
"""What a line had in earlier versions, of whose code nothing is taken."""


class Journal:
    """Outcomes that are there from before, by key.

    Not taken are those of processes that ended early within other limits than those of this run.

    Args:
        path: The file; one JSON object per line.
        what: What it is a journal of, for messages.
        limits: Of this run.
        fresh: Take nothing and start over.

    Raises:
        ConfigError: The file is no journal; it is left as it is.
    """

    def __init__(self, path: Path, what: str, limits: Limits, *, fresh: bool = False) -> None:
        self.path, self._limits = path, [limits.seconds, limits.gibibytes]
        self._outcomes: dict[str, Outcome] = {}
        if not path.exists():
            return
        lines = path.read_bytes().split(b"\n")
        try:
            for data in map(json.loads, lines[:-1]):
                self._take(data)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path} is no journal of {what}; give another --out, or remove it") from error
        if fresh:
            self._outcomes = {}
            path.unlink()
        elif lines[-1]:  # what an interruption cut off
            os.truncate(path, path.stat().st_size - len(lines[-1]))

    def _take(self, data: dict[str, Any]) -> None:
        if set(data) == _EARLIER:
            return
        outcome = Outcome(**data["outcome"])
        if not outcome.reason or data["limits"] == self._limits:
            self._outcomes[data["key"]] = outcome

    def items(self) -> Iterable[tuple[str, Outcome]]:
        """All that are there, by key."""
        return self._outcomes.items()

    def known(self, key: str) -> Outcome | None:
        """What became of a task before."""
        return self._outcomes.get(key)

    def add(self, key: str, outcome: Outcome) -> None:
        """Keep what became of a task."""
        self._outcomes[key] = outcome
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "limits": self._limits, "outcome": asdict(outcome)}) + "\n")
