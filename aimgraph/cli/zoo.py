"""``aimgraph zoo``: check a whole list of models, and make such a list."""

import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from aimgraph.errors import ConfigError
from aimgraph.zoo.levels import LEVELS
from aimgraph.zoo.manifest import FOLDER, SOURCES, Entry, chosen, list_entries, read_manifest, write_manifest
from aimgraph.zoo.rows import PASSED, Difference, Row, differences, read_rows, to_json, to_junit, write_rows
from aimgraph.zoo.runner import Journal, Limits, Task, run_local

EXIT_DIFFERENT = 1


@click.group("zoo")
def zoo_group() -> None:
    """Check whole lists of models."""


@zoo_group.command("list")
@click.option("--source", type=click.Choice(SOURCES), required=True)
@click.option("--out", type=click.Path(dir_okay=False), required=True, help="The manifest to write (CSV).")
def list_command(source: str, out: str) -> None:
    """Write a manifest of every model that a library has, with its inputs and its size."""
    entries = []
    for entry in list_entries(source):
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
@click.option("--largest", type=float, help="Leave out models of more than this many million parameters.")
@click.option("--expected", type=click.Path(exists=True, dir_okay=False), multiple=True, help="Expected results (CSV).")
@click.option("--out", type=click.Path(file_okay=False), default="out/zoo", show_default=True, help="Results go here.")
@click.option("--update", type=click.Path(dir_okay=False), help="Also write the results as expected results.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Models at a time.")
@click.option("--seconds", type=float, default=Limits.seconds, show_default=True, help="Time limit of one model.")
@click.option("--gibibytes", type=float, default=Limits.gibibytes, show_default=True, help="Memory limit of one model.")
@click.option("--fresh", is_flag=True, help="Start over instead of going on with an interrupted run.")
@click.option("--json", "as_json", is_flag=True, help="Print rows and differences as JSON on stdout, nothing else.")
def check_command(
    source: tuple[str, ...],
    manifests: tuple[str, ...],
    pattern: str | None,
    level: str,
    largest: float | None,
    expected: tuple[str, ...],
    out: str,
    update: str | None,
    jobs: int,
    seconds: float,
    gibibytes: float,
    fresh: bool,
    as_json: bool,
) -> None:
    """Transform every model of a list, compare it with its base, and with what is expected of it.

    Without --expected the results that came with aimgraph are the ones to compare with, for the
    models that these know. Exit code 1: something is not as expected, an unexpected pass included.
    """
    paths = [FOLDER / f"{name}.csv" for name in source] + [Path(name) for name in manifests]
    if not paths:
        raise ConfigError("give --source torchvision, timm or zoo, or --manifest FILE")
    entries = chosen([entry for path in paths for entry in read_manifest(path)], pattern)
    if largest is not None:
        entries = [entry for entry in entries if entry.parameters <= largest * 1e6]
    known = _expected([Path(name) for name in expected] or [FOLDER / "expected" / f"{name}.csv" for name in source])
    folder = Path(out)
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    rows = _run([(entry, level) for entry in entries], folder, jobs, Limits(seconds, gibibytes))
    wrong = differences(rows, known) if known else []
    write_rows(folder / "results.csv", rows)
    (folder / "results.json").write_text(to_json(rows, wrong), encoding="utf-8")
    (folder / "junit.xml").write_text(to_junit(rows, wrong), encoding="utf-8")
    if update:
        write_rows(Path(update), (_known_rows(Path(update)) | {(row.name, row.level): row for row in rows}).values())
    if as_json:
        click.echo(to_json(rows, wrong))
    else:
        _summary(rows, entries, wrong, compared=bool(known))
        click.echo(f"results: {folder}/results.csv, results.json, junit.xml")
    sys.exit(EXIT_DIFFERENT if wrong or (not known and any(row.status != PASSED for row in rows)) else 0)


def _expected(paths: list[Path]) -> dict[tuple[str, str], Row]:
    return {key: row for path in paths for key, row in _known_rows(path).items()}


def _known_rows(path: Path) -> dict[tuple[str, str], Row]:
    return read_rows(path) if path.exists() else {}


def _run(tasks: list[Task], folder: Path, jobs: int, limits: Limits) -> list[Row]:
    journal = Journal(folder / "journal.jsonl")
    by_name = {(entry.name, level): (entry, level) for entry, level in tasks}
    rows = [row for row in map(journal.known, tasks) if row is not None]
    todo = [task for task in tasks if journal.known(task) is None]
    with _progress(len(tasks), len(rows)) as advance:

        def report(row: Row) -> None:
            journal.add(by_name[row.name, row.level], row)
            rows.append(row)
            advance(row)

        run_local(todo, jobs, limits, report)
    return sorted(rows, key=lambda row: row.name)


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[Row], None]]:
    """A bar with the time that remains; a line per model where nobody watches."""
    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    if done:
        console.print(f"{done} of {total} rows are there from an earlier run")
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=total, completed=done)
        started, count = time.monotonic(), 0

        def advance(row: Row) -> None:
            nonlocal count
            count += 1
            if row.status != PASSED or not console.is_terminal:
                left = (time.monotonic() - started) / count * (total - done - count)
                note = f"{row.status} {row.rewritten}/{row.called} {row.seconds:.1f} s {row.reason}"
                console.print(
                    f"[{done + count}/{total}, {left:.0f} s left] {row.name}: {note}", highlight=False, markup=False
                )
            progress.update(bar, advance=1, description=row.name)

        yield advance


def _summary(rows: list[Row], entries: list[Entry], wrong: list[Difference], *, compared: bool) -> None:
    console = Console(width=None if Console().is_terminal else 140)
    counts = Counter(row.status for row in rows)
    passed = [row for row in rows if row.status == PASSED]
    table = Table("level", "models", "status", "layers read / called", "of them by fallback", "median s")
    for status, count in counts.most_common():
        of = [row for row in rows if row.status == status]
        read = f"{sum(r.rewritten for r in of):,} / {sum(r.called for r in of):,}"
        table.add_row(
            rows[0].level,
            str(count),
            status,
            read,
            str(sum(r.fallback for r in of)),
            f"{median(r.seconds for r in of):.2f}",
        )
    console.print(table)
    for row in rows:
        if row.status != PASSED:
            console.print(f"{row.name}: {row.status}: {row.reason}", highlight=False, markup=False)
    partly = [row for row in passed if row.rewritten < row.called]
    for row in partly[:20]:
        console.print(f"{row.name}: {row.rewritten} of {row.called} read: {row.reason}", highlight=False, markup=False)
    for item in wrong:
        console.print(f"NOT AS EXPECTED {item}", highlight=False, markup=False)
    if not compared:
        console.print("nothing to compare with: write these results with --update FILE, and give them as --expected")
    console.print(f"{len(rows)} models, {len(passed)} passed, {len(wrong)} not as expected")
