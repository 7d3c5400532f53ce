"""A file of runs: JSON, one line a run, written whole after each, so that a stopped command goes on where it was."""

import json
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def shown(runs: Sequence[T], name: str, told: Callable[[T], str]) -> Iterator[T]:
    """The runs of a task, with a bar that says how long the others will take."""
    columns = TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) as bar:
        task = bar.add_task(name, total=len(runs))
        for run in runs:
            bar.update(task, description=f"{name}: {told(run)}")
            yield run
            bar.advance(task)


class Journal:
    """The runs of one task.

    Args:
        path: The file; it need not exist.
        keys: Names of the fields that tell a run from the others.
        settings: What all runs have in common; a file with other settings is refused.

    Raises:
        ValueError: The file holds runs with other settings.
    """

    def __init__(self, path: Path, keys: tuple[str, ...], settings: Mapping[str, Any]) -> None:
        self.path, self.keys, self.settings = path, keys, dict(settings)
        self.runs: list[dict[str, Any]] = []
        if path.exists():
            content = json.loads(path.read_text())
            if content["settings"] != self.settings:
                raise ValueError(f"{path} holds runs with other settings: move it away, or give another --out")
            self.runs = content["runs"]
        self._known = {self._key(run) for run in self.runs}

    def __contains__(self, run: Mapping[str, Any]) -> bool:
        return self._key(run) in self._known

    def add(self, run: Mapping[str, Any]) -> None:
        """Write down one more run."""
        self.runs.append(dict(run))
        self.runs.sort(key=lambda one: [str(value) for value in self._key(one)])
        self._known.add(self._key(run))
        lines = ",\n".join(json.dumps(one) for one in self.runs)
        text = f'{{"settings": {json.dumps(self.settings)},\n"runs": [\n{lines}\n]}}\n'
        part = self.path.with_suffix(".part")
        part.write_text(text)
        os.replace(part, self.path)

    def _key(self, run: Mapping[str, Any]) -> tuple[Hashable, ...]:
        return tuple(run[key] for key in self.keys)
