"""``aimgraph experiment``: does a memory help? The same training for several arms and seeds, and what it shows."""

import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aimgraph.cli.click_parts import CloseGroup
from aimgraph.cli.options import NEW_FOLDER
from aimgraph.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from aimgraph.experiment.recipe import Recipe
    from aimgraph.experiment.results import Lost, Result, Unit

EXIT_DIFFERENT = 1

_POSITIVE = click.FloatRange(min=0, min_open=True)


@contextmanager
def _installed() -> Iterator[None]:
    """Say what to install where a package of the extra is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"experiments need {error.name}, which is not installed: pip install 'aimgraph[experiment]'"
        ) from error


@click.group("experiment", cls=CloseGroup)
def experiment_group() -> None:
    """Find out whether a memory helps.

    The same training runs with and without one, for several seeds.
    """


@experiment_group.command("list")
def list_command() -> None:
    """The recipes that come with aimgraph."""
    with _installed():
        from aimgraph.experiment.shipped import shipped
    for name, recipe in shipped().items():
        click.echo(f"{name:<24} {recipe.about}")


@experiment_group.command("show")
@click.argument("recipe")
def show_command(recipe: str) -> None:
    """Print a recipe that comes with aimgraph, to begin one of your own from."""
    with _installed():
        from aimgraph.experiment.shipped import path_of
    click.echo(path_of(recipe).read_text(encoding="utf-8"), nl=False)


@experiment_group.command("report")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
def report_command(folder: str) -> None:
    """Write the report of an experiment anew, from the results.json in FOLDER."""
    with _installed():
        from aimgraph.experiment.report import report_text, write_report
        from aimgraph.experiment.results import read_experiment
    experiment = read_experiment(Path(folder) / "results.json")
    write_report(experiment, Path(folder))
    click.echo(report_text(experiment))


@experiment_group.command("run")
@click.argument("recipe")
@click.option(
    "--out", type=NEW_FOLDER, metavar="FOLDER", help="Folder of the results.  [default: out/experiments/NAME]"
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Units that run at once."
)
@click.option(
    "--seeds", type=click.IntRange(min=1), metavar="N", help="How many seeds, in place of the recipe's number."
)
@click.option(
    "--limit",
    type=_POSITIVE,
    default=86_400.0,
    show_default=True,
    metavar="SECONDS",
    help="Seconds that a unit may take.",
)
@click.option(
    "--gibibytes", type=_POSITIVE, default=16.0, show_default=True, metavar="GIB", help="Memory that a unit may take."
)
@click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Threads of a unit."
)
@click.option("--ray", "address", metavar="ADDRESS", help="Run on this Ray cluster; auto, or local to start one here.")
@click.option(
    "--gpus",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="NUMBER",
    help="GPUs of a unit, with --ray.",
)
@click.option("--launch", metavar="COMMAND", help="Starts each unit, as 'accelerate launch --num_processes 2'.")
@click.option("--fresh", is_flag=True, help="Take no result of an earlier run.")
@click.option("--json", "as_json", is_flag=True, help="Print results.json on stdout, nothing else.")
def run_command(recipe: str, out: str | None, seeds: int | None, as_json: bool, **asked: Any) -> None:
    """Run the experiment of RECIPE, a TOML file or a name that `aimgraph experiment list` shows.

    Rates are chosen by validation, then each arm is trained with every seed and tested once. The folder gets
    report.html, report.md and results.json. A run that was stopped goes on where it was when it is started again.
    Exit code 1: a unit has no result, a part of a memory did not learn, or a prediction of the recipe did not come.
    """
    with _installed():
        from aimgraph.experiment.report import report_text, write_report
        from aimgraph.experiment.run import Way, run_experiment
        from aimgraph.units.runner import Limits
    read = _read(recipe, seeds)
    limits = Limits(asked["limit"], asked["gibibytes"], asked["threads"], asked["gpus"])
    folder = Path(out) if out else Path("out") / "experiments" / read.name
    launch = tuple(shlex.split(asked["launch"] or ""))
    way = Way(folder, asked["jobs"], limits, asked["address"], launch, asked["fresh"])
    with _shown() as watcher:
        experiment = run_experiment(read, way, watcher)
    write_report(experiment, folder)
    if as_json:
        click.echo(json.dumps(experiment.to_dict(), indent=1))
    else:
        click.echo(report_text(experiment))
        click.echo(f"report: {folder}/report.html, report.md, results.json")
    sys.exit(0 if experiment.sound else EXIT_DIFFERENT)


def _read(recipe: str, seeds: int | None) -> "Recipe":
    from aimgraph.experiment.recipe import read_recipe
    from aimgraph.experiment.shipped import path_of

    read = read_recipe(path_of(recipe))
    return read if seeds is None else read.model_copy(update={"seeds": seeds})


@contextmanager
def _shown() -> "Iterator[_Shown]":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    errors = Console(stderr=True, emoji=False)
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn()
    with Progress(*columns, console=errors, disable=not errors.is_terminal) as progress:
        yield _Shown(errors, progress)


class _Shown:
    """A bar with the time that remains; a line for each unit where nobody watches.

    Args:
        errors: Where lines are printed.
        progress: Where the bar is.
    """

    def __init__(self, errors: "Console", progress: "Progress") -> None:
        self.errors, self.progress = errors, progress

    def begin(self, phase: str, units: "Sequence[Unit]", known: int) -> None:
        """A phase begins: its units, and how many of them are there from an earlier run."""
        self.phase, self.units, self.known = phase, len(units), known
        self.epochs, self.there, self.done = dict.fromkeys(units, 0), 0, 0
        self.total, self.started = sum(unit.epochs for unit in units), time.monotonic()
        self.bar = self.progress.add_task(phase, total=self.total, told="")
        there = f", {known} of them there from an earlier run" if known else ""
        if known or not self.errors.is_terminal:
            self.errors.print(f"{phase}: {len(units)} units, {self.total} epochs{there}", highlight=False)

    def epoch(self, unit: "Unit", done: int) -> None:
        """A unit has trained so many epochs."""
        self.epochs[unit] = done
        told = f"{self.done}/{self.units} units, {self._left()}"
        self.progress.update(self.bar, completed=sum(self.epochs.values()), told=told)

    def ended(self, unit: "Unit", outcome: "Result | Lost") -> None:
        """A unit is done, or lost."""
        self.done += 1
        if self.done <= self.known:
            self.there += unit.epochs
        self.epoch(unit, unit.epochs)
        from aimgraph.experiment.results import Lost

        if isinstance(outcome, Lost):
            said = f"no result: {outcome.reason}"
        elif self.errors.is_terminal or self.done <= self.known:
            return
        else:
            said = f"{outcome.validation[-1]:.4g} on validation"
        place = f"[{self.phase} {self.done}/{self.units}, {self._left()}] {unit}:"
        self.errors.print(f"{place} {said}", highlight=False, markup=False, soft_wrap=True)

    def _left(self) -> str:
        """How long the others take, if they take as long as those that were trained in this run."""
        trained = sum(self.epochs.values()) - self.there
        if trained <= 0:
            return "time left: not known yet"
        left = (time.monotonic() - self.started) / trained * (self.total - self.there - trained)
        return f"{left:.0f} s left" if left < _MINUTES else f"{left / 60:.0f} min left"


_MINUTES = 600.0
"""Seconds from which on minutes are shown."""
