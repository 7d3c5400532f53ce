"""What a command does at present, on stderr: a moving line in a terminal, a line every few seconds elsewhere."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import Self

import click

SECONDS = 5.0
"""Between two lines where stderr is no terminal; what is done sooner prints none."""


class Progress(ABC):
    """Shows what is done at present, within a ``with`` block."""

    @abstractmethod
    def step(self, text: str, done: int = 0, total: int | None = None) -> None:
        """Begin something, or say how much of it is done.

        Args:
            text: What is done.
            done: How many pieces of it are done.
            total: How many pieces there are; None where nobody knows.
        """

    @abstractmethod
    def say(self, text: str) -> None:
        """Print a line that stays."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...


@contextmanager
def progress(text: str) -> Iterator[Progress]:
    """Show what is done until the ``with`` block ends.

    Args:
        text: What is done first.
    """
    shown: Progress = _Moving() if sys.stderr.isatty() else _Lines()
    shown.step(text)
    with shown:
        yield shown


class _Moving(Progress):
    """A line in a terminal that is written over."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self.bars = Progress(*columns, console=Console(stderr=True, emoji=False), transient=True)
        self.bar = self.bars.add_task("", total=None)

    def step(self, text: str, done: int = 0, total: int | None = None) -> None:
        self.bars.update(self.bar, description=text, completed=done, total=total)

    def say(self, text: str) -> None:
        self.bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()


class _Lines(Progress):
    """A line every few seconds: what is done, for how long, and how much of it is done."""

    def __init__(self) -> None:
        self.began = monotonic()
        self.present: tuple[str, float, int, int | None] = ("", self.began, 0, None)
        self.over = Event()
        self.thread = Thread(target=self._tell, daemon=True)

    def step(self, text: str, done: int = 0, total: int | None = None) -> None:
        since = self.present[1] if text == self.present[0] else monotonic()
        self.present = (text, since, done, total)

    def say(self, text: str) -> None:
        click.echo(f"aimgraph: {text}", err=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _tell(self) -> None:
        while not self.over.wait(SECONDS):
            text, since, done, total = self.present
            now = monotonic()
            share = f", {done}{f' of {total}' if total else ''}" if done else ""
            self.say(f"{text}{share}: for {now - since:.0f} s, {now - self.began:.0f} s since the command began")


class Estimate:
    """Says once for each thing that is measured in rounds how long it will take, from what its first round took.

    Args:
        shown: Where.
        rounds: That count; one more comes before them.
    """

    def __init__(self, shown: Progress, rounds: int) -> None:
        self.shown, self.rounds = shown, rounds
        self.times: dict[str, list[float]] = {}

    def __call__(self, text: str, done: int, total: int) -> None:
        """Told of every piece of work that is done, as `aimgraph.bench.bench` does."""
        self.shown.step(text, done, total)
        pieces = total // (self.rounds + 1)
        if not done or pieces * (self.rounds + 1) != total:
            return
        times = self.times.setdefault(text, [])
        times.append(monotonic())
        first = max(2, pieces)  # from one time alone nothing follows
        if len(times) == first:
            left = (times[-1] - times[0]) / (first - 1) * (total - first)
            self.shown.say(f"{text}: {self.rounds} rounds of {pieces} forms, about {duration(left)}")


def duration(seconds: float) -> str:
    """A rough time in words: seconds, minutes or hours."""
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(1.0, seconds):.0f} s"
