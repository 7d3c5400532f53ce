"""aimgraph report: a model, its memory and what reads and writes it, as one HTML file."""

import os
from pathlib import Path

import click

from aimgraph.api.transform import plan
from aimgraph.checkpoint.load import load
from aimgraph.cli.options import FOLDER, Asked, model_options
from aimgraph.cli.output import show, steps
from aimgraph.errors import ConfigError
from aimgraph.web.looked_at import planned_subject, subjects_of
from aimgraph.web.report import write_page


@click.command("report")
@model_options
@click.option("--out", "path", type=click.Path(dir_okay=False), required=True, help="The HTML file to write.")
@click.option("--checkpoint", type=FOLDER, help="Show MODEL with the memory in this folder.")
def report_command(asked: Asked, path: str, checkpoint: str | None) -> None:
    """Write a page that shows MODEL, its memory, and what reads and writes it.

    MODEL may also be the folder of a checkpoint, which is then shown without its base.
    """
    given = [name for name, value in asked.memory.items() if value is not None and value != ()]
    alone = os.path.isdir(asked.model) and (Path(asked.model) / "aimgraph.json").is_file()
    if given and (alone or checkpoint):
        raise ConfigError(f"a checkpoint says what its memory is: leave {given} out")
    with steps(asked.model) as step:
        if alone:
            subjects = subjects_of(asked.model)
        elif checkpoint:
            base = asked.base()
            step("loading the memory")
            subjects = subjects_of(load(checkpoint, base, asked.example_inputs()))
        else:
            base = asked.base()
            step("planning")
            subjects = [planned_subject(base, plan(base, asked.example_inputs(), **asked.settings()))]
        step(f"writing {path}")
        written = str(write_page(subjects, Path(path)))
    show(asked.as_json, {"path": written}, written)
