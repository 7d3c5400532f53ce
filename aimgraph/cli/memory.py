"""aimgraph memory list|diff|merge: what is in checkpoints, without their base."""

from dataclasses import asdict
from pathlib import Path

import click

from aimgraph.cli.click_parts import CloseGroup
from aimgraph.cli.options import FOLDER, JSON, NEW_FOLDER
from aimgraph.cli.output import console, json_text


@click.group("memory", cls=CloseGroup)
def memory_group() -> None:
    """List, compare and merge saved memories.

    They are checkpoints that aimgraph.save or --checkpoint wrote.
    """


@memory_group.command("list")
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@JSON
def list_command(folders: tuple[str, ...], as_json: bool) -> None:
    """Sizes and norms of the memories in FOLDERS, every memory set on a line of its own."""
    from rich.table import Table

    from aimgraph.checkpoint.compare import KINDS, summary

    found = [summary(folder) for folder in folders]
    if as_json:
        click.echo(json_text([item.to_dict() for item in found]))
        return
    columns = ("checkpoint", "base", "set", "memory", "shape", "values", "reads", "updates", "bytes")
    table = Table(*columns, *(f"|{kind}|" for kind in KINDS))
    for item in found:
        for memory in item.memories:
            name = f"{memory.part}: {memory.name}" if memory.part else memory.name
            shape = " x ".join(map(str, memory.shape))
            norms = [f"{memory.norms[kind]:.4g}" if kind in memory.norms else "-" for kind in KINDS]
            counts = (memory.values, memory.reads, memory.updates, memory.bytes)
            folder = f"{item.folder} ({item.what})"
            table.add_row(
                folder, item.base, memory.memory_set, name, shape, *(f"{count:,}" for count in counts), *norms
            )
    console(160).print(table)
    for item in found:
        if item.what == "values":
            click.echo(f"{item.folder} holds values alone: its read weights are drawn again when it is loaded")


@memory_group.command("diff")
@click.argument("first", type=FOLDER)
@click.argument("second", type=FOLDER)
@JSON
def diff_command(first: str, second: str, as_json: bool) -> None:
    """How far the memories in FIRST and SECOND are apart, tensor by tensor, in every memory set."""
    from rich.table import Table

    from aimgraph.checkpoint.compare import distances
    from aimgraph.checkpoint.tensor_files import read_spec

    found = distances(first, second)
    if as_json:
        click.echo(json_text([asdict(item) for item in found]))
        return
    table = Table("tensor", "|first|", "|second|", "|first - second|", "cosine")
    for item in found:
        numbers = (*item.norms, item.distance, item.cosine)
        table.add_row(item.name, *("-" if number is None else f"{number:.4g}" for number in numbers))
    console(160).print(table)
    if read_spec(Path(first)).what == "values":
        click.echo("both hold values alone, of the same base and read by the same drawn weights")


@memory_group.command("merge")
@click.argument("folders", nargs=-1, required=True, type=FOLDER)
@click.option("--out", required=True, type=NEW_FOLDER, metavar="FOLDER", help="Folder of the checkpoint to write.")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=float,
    metavar="NUMBER",
    help="Weight of a checkpoint in the mean, one for each, in their order; by default all equal.",
)
def merge_command(folders: tuple[str, ...], out: str, weights: tuple[float, ...]) -> None:
    """Write the weighted mean of the memories in FOLDERS, which must be of the same make."""
    from aimgraph.checkpoint.compare import mean

    click.echo(str(mean(folders, out, weights or None)))
