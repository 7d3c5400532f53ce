"""``aimgraph zoo``: check a whole list of models, and make such a list."""

import sys
from pathlib import Path
from typing import Any

import click

from aimgraph.cli import known
from aimgraph.cli.click_parts import CloseGroup, Names
from aimgraph.cli.options import NEW_FILE, NEW_FOLDER
from aimgraph.cli.progress import progress
from aimgraph.errors import ConfigError

EXIT_DIFFERENT = 1

_POSITIVE = click.FloatRange(min=0, min_open=True)
_FILES = click.Path(exists=True, dir_okay=False)


@click.group("zoo", cls=CloseGroup)
def zoo_group() -> None:
    """Check whole lists of models."""


@zoo_group.command("list")
@click.option("--source", type=Names(known.LIBRARIES.value), help="The library to list.")
@click.option("--ci", is_flag=True, help="Instead of one library's all: a few models of every family, with levels.")
@click.option("--out", type=NEW_FILE, metavar="FILE", required=True, help="The manifest to write (CSV).")
def list_command(source: str | None, ci: bool, out: str) -> None:
    """Write a manifest of every model that a library has, with its inputs and its size."""
    if (source is None) != ci:
        raise ConfigError("give either --source torchvision, timm or zoo, or --ci")
    with progress("listing models") as shown:
        from aimgraph.zoo_check.manifest import write_manifest
        from aimgraph.zoo_check.sources import list_entries, representatives

        entries = []
        for entry in representatives() if source is None else list_entries(source):
            entries.append(entry)
            shown.step("listing models", len(entries))
    write_manifest(Path(out), entries)
    click.echo(f"{out}: {len(entries)} models")


@zoo_group.command("check")
@click.option("--source", type=Names(known.LIBRARIES.value), multiple=True, help="Models of a library. Repeatable.")
@click.option(
    "--manifest",
    "manifests",
    type=_FILES,
    metavar="FILE",
    multiple=True,
    help="The models that this list of your own names (CSV). Repeatable.",
)
@click.option("--filter", "pattern", metavar="GLOB", help="Models of such a name only, e.g. 'timm/resnet*'.")
@click.option(
    "--level",
    type=Names(known.LEVELS.value),
    default="structure",
    show_default=True,
    help="What is checked of models whose row names no level.",
)
@click.option(
    "--rows", "rows_at", type=Names(known.LEVELS.value), help="Rows that name this level only; --level replaces it."
)
@click.option("--largest", type=float, metavar="MILLIONS", help="Leave out models of more parameters, in millions.")
@click.option("--smallest", is_flag=True, help="The smallest model of every family only.")
@click.option(
    "--expected",
    type=_FILES,
    metavar="FILE",
    multiple=True,
    help="Compare with the results in this file (CSV). Repeatable.",
)
@click.option(
    "--out", type=NEW_FOLDER, metavar="FOLDER", default="out/zoo", show_default=True, help="Folder of the results."
)
@click.option("--update", type=NEW_FILE, metavar="FILE", help="Also write the results as expected results.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Models at a time.")
@click.option("--ray", "address", metavar="ADDRESS", help="Run on this Ray cluster; 'local' starts Ray for the run.")
@click.option(
    "--seconds",
    type=_POSITIVE,
    default=known.SECONDS.value,
    show_default=True,
    metavar="SECONDS",
    help="Time limit of one model.",
)
@click.option(
    "--gibibytes",
    type=_POSITIVE,
    default=known.GIBIBYTES.value,
    show_default=True,
    metavar="GIB",
    help="Memory limit of one model.",
)
@click.option("--fresh", is_flag=True, help="Start over instead of going on with an interrupted run.")
@click.option("--json", "as_json", is_flag=True, help="Print rows and differences as JSON on stdout, nothing else.")
def check_command(
    source: tuple[str, ...], manifests: tuple[str, ...], pattern: str | None, as_json: bool, **asked: Any
) -> None:
    """Transform every model of a list, compare it with its base, and with what is expected of it.

    A manifest is a CSV whose first line names its columns; only name is needed. Its column level
    comes before --level; with --rows, the rows that name that level are checked at --level. With
    --expected every model has to be in one of these files, to be as it says there, and, without
    --filter, --largest and --smallest, to be in the list as well. Without, the results that came with
    aimgraph are compared with, and models that these do not know have to pass. Exit code 1: something
    is not as expected, an unexpected pass included.
    """
    if not (source or manifests):
        raise ConfigError("give --source torchvision, timm or zoo, or --manifest FILE")
    from aimgraph.cli.zoo_run import checked, print_summary
    from aimgraph.zoo_check.rows import to_json

    choice = {"pattern": pattern, "largest": asked.pop("largest"), "smallest": asked.pop("smallest")}
    rows, wrong, folder = checked(source, manifests, choice, **asked)
    if as_json:
        click.echo(to_json(rows, wrong))
    else:
        print_summary(rows, wrong)
        click.echo(f"results: {folder}/results.csv, results.json, junit.xml")
    sys.exit(EXIT_DIFFERENT if wrong else 0)
