"""``aimgraph zoo``: check a whole list of models, and make such a list."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from aimgraph.cli.output import console
from aimgraph.errors import ConfigError
from aimgraph.units.runner import Limits
from aimgraph.zoo_check.journal import Journal
from aimgraph.zoo_check.manifest import LEVELS, Task, chosen, read_manifest, to_tasks, write_manifest
from aimgraph.zoo_check.rows import PASSED, Difference, Row, differences, read_rows, to_json, write_results, write_rows
from aimgraph.zoo_check.runner import run_local, run_remote
from aimgraph.zoo_check.sources import FOLDER, SOURCES, list_entries, representatives

EXIT_DIFFERENT = 1


_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.group("zoo")
def zoo_group() -> None:
    """Check whole lists of models."""


@zoo_group.command("list")
@click.option("--source", type=click.Choice(SOURCES), help="The library to list.")
@click.option("--ci", is_flag=True, help="Instead of one library's all: a few models of every family, with levels.")
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="The manifest to write (CSV).")
def list_command(source: str | None, ci: bool, out: str) -> None:
    """Write a manifest of every model that a library has, with its inputs and its size."""
    if (source is None) != ci:
        raise ConfigError("give either --source torchvision, timm or zoo, or --ci")
    entries = []
    for entry in representatives() if source is None else list_entries(source):
        entries.append(entry)
        if sys.stderr.isatty():
            click.echo(f"\r{len(entries)} {entry.name}\033[K", err=True, nl=False)
    write_manifest(Path(out), entries)
    click.echo(f"{out}: {len(entries)} models")


@zoo_group.command("check")
@click.option("--source", type=click.Choice(SOURCES), multiple=True, help="The models of a library. Repeatable.")
@click.option("--manifest", "manifests", type=click.Path(exists=True, dir_okay=False), multiple=True, help="Your own.")
@click.option("--filter", "pattern", help="Glob over model names, e.g. 'timm/resnet*'.")
@click.option("--level", type=click.Choice(LEVELS), default="structure", show_default=True)
@click.option(
    "--rows", "rows_at", type=click.Choice(LEVELS), help="Rows that name this level only; --level replaces it."
)
@click.option("--largest", type=float, help="Leave out models of more than this many million parameters.")
@click.option("--smallest", is_flag=True, help="The smallest model of every family only.")
@click.option("--expected", type=click.Path(exists=True, dir_okay=False), multiple=True, help="Expected results (CSV).")
@click.option("--out", type=click.Path(file_okay=False), default="out/zoo", show_default=True, help="Results go here.")
@click.option("--update", type=click.Path(dir_okay=False), help="Also write the results as expected results.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Models at a time.")
@click.option("--ray", "address", metavar="ADDRESS", help="Run on this Ray cluster; 'local' starts Ray for the run.")
@click.option("--seconds", type=_POSITIVE, default=Limits.seconds, show_default=True, help="Time limit of one model.")
@click.option("--gibibytes", type=_POSITIVE, default=Limits.gibibytes, show_default=True, help="Memory limit of one.")
@click.option("--fresh", is_flag=True, help="Start over instead of going on with an interrupted run.")
@click.option("--json", "as_json", is_flag=True, help="Print rows and differences as JSON on stdout, nothing else.")
def check_command(
    source: tuple[str, ...],
    manifests: tuple[str, ...],
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
    as_json: bool,
    **choice: Any,
) -> None:
    """Transform every model of a list, compare it with its base, and with what is expected of it.

    A manifest is a CSV whose first line names its columns; only name is needed. Its column level
    comes before --level; with --rows, the rows that name that level are checked at --level. With
    --expected every model has to be in one of these files, to be as it says there, and, without
    --filter, --largest and --smallest, to be in the list as well. Without, the results that came with
    aimgraph are compared with, and models that these do not know have to pass. Exit code 1: something
    is not as expected, an unexpected pass included.
    """
    paths = [FOLDER / f"{name}.csv" for name in source] + [Path(name) for name in manifests]
    if not paths:
        raise ConfigError("give --source torchvision, timm or zoo, or --manifest FILE")
    # choice: pattern, largest and smallest
    listed = [entry for path in paths for entry in read_manifest(path)]
    if rows_at is not None:
        listed = [replace(entry, level="") for entry in listed if entry.level == rows_at]
    entries = chosen(listed, **choice)
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
    if as_json:
        click.echo(to_json(rows, wrong))
    else:
        _summary(rows, wrong)
        click.echo(f"results: {folder}/results.csv, results.json, junit.xml")
    sys.exit(EXIT_DIFFERENT if wrong else 0)


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
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:
        bar = progress.add_task("", total=total, completed=done)
        started, count = time.monotonic(), 0

        def advance(row: Row) -> None:
            nonlocal count
            count += 1
            if row.status != PASSED or not errors.is_terminal:
                left = (time.monotonic() - started) / count * (total - done - count)
                place = f"[{done + count}/{total}, {left:.0f} s left] {row.name}:"
                note = f"{row.status} {row.rewritten}/{row.called} {row.seconds:.1f} s {row.reason}"
                errors.print(f"{place} {note}", highlight=False, markup=False)
            progress.update(bar, advance=1, description=row.name)

        yield advance


def _summary(rows: list[Row], wrong: list[Difference]) -> None:
    out = console(emoji=False)
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
