"""What ``aimgraph zoo check`` does: the models of a list, compared with what is expected of them."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from aimgraph.cli.output import console
from aimgraph.cli.progress import progress
from aimgraph.errors import ConfigError
from aimgraph.units.runner import Limits
from aimgraph.zoo_check.journal import Journal
from aimgraph.zoo_check.manifest import Entry, Task, chosen, read_manifest, to_tasks
from aimgraph.zoo_check.rows import PASSED, Difference, Row, differences, read_rows, write_results, write_rows
from aimgraph.zoo_check.runner import run_local, run_remote
from aimgraph.zoo_check.sources import FOLDER

_WIDE = 140
"""Columns of the tables where no terminal sets a width."""


def checked(
    source: tuple[str, ...],
    manifests: tuple[str, ...],
    choice: Mapping[str, Any],
    *,
    level: str,
    rows_at: str | None,
    expected: tuple[str, ...],
    out: str,
    update: str | None,
    jobs: int,
    address: str | None,
    seconds: float,
    gibibytes: float,
    fresh: bool,
) -> tuple[list[Row], list[Difference], Path]:
    """Check the models of a list: their rows, what is not as expected, and the folder of the results.

    Args:
        source: Libraries.
        manifests: Files with models of the user's own.
        choice: Which of their models: ``pattern``, ``largest`` and ``smallest``.
        level: What is checked of models whose row names no level.
        rows_at: Rows that name this level only.
        expected: Files with expected results.
        out: Folder of the results.
        update: File to write the results into as expected results.
        jobs: Models at a time.
        address: Of a Ray cluster; None for this machine.
        seconds: Time limit of a model.
        gibibytes: Memory limit of a model.
        fresh: Whether results of an interrupted run are left out.
    """
    entries = _listed(source, manifests, rows_at, choice)
    known = _known([Path(name) for name in expected] or [FOLDER / "expected" / f"{name}.csv" for name in source])
    before = _known([Path(update)]) if update else {}
    folder, limits = _writable(Path(out)), Limits(seconds, gibibytes)
    if update:
        _writable(Path(update).parent)
    journal = Journal(folder / "journal.jsonl", limits, fresh=fresh)
    rows = _run(to_tasks(entries, level), journal, jobs, address, limits)
    whole = bool(expected) and all(value is None or value is False for value in choice.values())
    wrong = differences(rows, known, strict=bool(expected), whole=whole)
    write_results(folder, rows, wrong)
    if update:
        write_rows(Path(update), (before | {(row.name, row.level): row for row in rows}).values())
    return rows, wrong, folder


def _listed(
    source: tuple[str, ...], manifests: tuple[str, ...], rows_at: str | None, choice: Mapping[str, Any]
) -> list[Entry]:
    """The entries of all lists that are chosen."""
    paths = [FOLDER / f"{name}.csv" for name in source] + [Path(name) for name in manifests]
    listed = [entry for path in paths for entry in read_manifest(path)]
    if rows_at is not None:
        listed = [replace(entry, level="") for entry in listed if entry.level == rows_at]
    return chosen(listed, **choice)


def _writable(folder: Path) -> Path:
    """A folder that files can be written to, made if need be: known before hours of work, not after.

    Raises:
        ConfigError: It is none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ConfigError(f"nothing can be written to {folder}: {error}") from error


def _known(paths: list[Path]) -> dict[tuple[str, str], Row]:
    return {key: row for path in paths if path.exists() for key, row in read_rows(path).items()}


def _run(tasks: list[Task], journal: Journal, jobs: int, address: str | None, limits: Limits) -> list[Row]:
    known = [(task, journal.known(task)) for task in tasks]
    rows = [row for _, row in known if row is not None]
    todo = [task for task, row in known if row is None]
    with _progress(len(tasks), len(rows)) as advance:

        def report(task: Task, row: Row) -> None:
            journal.add(task, row)
            rows.append(row)
            advance(row)

        if address is None:
            run_local(todo, jobs, limits, report)
        else:
            run_remote(todo, address, jobs, limits, report)
    return sorted(rows, key=lambda row: (row.level, row.name))


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[Row], None]]:
    """A bar with the time that remains; a line per model where nobody watches."""
    errors = Console(stderr=True, emoji=False)
    text = TextColumn("{task.description}")
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), text
    if done:
        errors.print(f"{done} of {total} rows are there from an earlier run")
    waiting = nullcontext() if errors.is_terminal else progress("checking models")
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as bars, waiting as shown:
        bar = bars.add_task("", total=total, completed=done)
        started, count = time.monotonic(), 0

        def advance(row: Row) -> None:
            nonlocal count
            count += 1
            if row.status != PASSED or not errors.is_terminal:
                left = (time.monotonic() - started) / count * (total - done - count)
                place = f"[{done + count}/{total}, {left:.0f} s left] {row.name}:"
                note = f"{row.status} {row.rewritten}/{row.called} {row.seconds:.1f} s {row.reason}"
                errors.print(f"{place} {note}", highlight=False, markup=False)
            bars.update(bar, advance=1, description=row.name)
            if shown is not None:
                shown.step("checking models", done + count, total)

        yield advance


def print_summary(rows: list[Row], wrong: list[Difference]) -> None:
    """Print how many models passed, and what is wrong or not read."""
    out = console(_WIDE, emoji=False)
    table = Table("level", "models", "status", "layers read / called", "of them by fallback", "median s")
    for level, status in sorted({(row.level, row.status) for row in rows}):
        of = [row for row in rows if (row.level, row.status) == (level, status)]
        read = f"{sum(r.rewritten for r in of):,} / {sum(r.called for r in of):,}"
        fallback, seconds = sum(r.fallback for r in of), median(r.seconds for r in of)
        table.add_row(level, str(len(of)), status, read, str(fallback), f"{seconds:.2f}")
    out.print(table)
    passed = [row for row in rows if row.status == PASSED]
    partly = [row for row in passed if row.rewritten < row.called]
    said = {(item.row.name, item.row.level) for item in wrong}
    failed = [row for row in rows if row.status != PASSED and (row.name, row.level) not in said]
    notes = [f"{row.name}: {row.status}: {row.reason}" for row in failed]
    notes += [f"{row.name}: {row.rewritten} of {row.called} read: {row.reason}" for row in partly[:20]]
    for note in notes + [f"NOT AS EXPECTED {item}" for item in wrong]:
        out.print(note, highlight=False, markup=False)
    out.print(f"{len(rows)} models, {len(passed)} passed, {len(wrong)} not as expected")
