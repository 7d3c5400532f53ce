"""``aimgraph report``: a model, its memory and what reads and writes it, as one HTML file."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aimgraph.cli.asked import Asked
from aimgraph.cli.compare import planned
from aimgraph.cli.options import FOLDER, MODEL_EPILOG, NEW_FILE, model_options
from aimgraph.cli.output import show
from aimgraph.cli.progress import Progress, progress
from aimgraph.errors import ConfigError

if TYPE_CHECKING:
    from aimgraph.web.subject import Subject


@click.command("report", epilog=MODEL_EPILOG)
@model_options
@click.option("--out", "path", type=NEW_FILE, required=True, help="The HTML file to write.")
@click.option("--checkpoint", type=FOLDER, help="Show MODEL with the memory in this folder.")
def report_command(asked: Asked, path: str, checkpoint: str | None) -> None:
    """Write a page that shows MODEL and its memory.

    It shows what reads and writes the memory, layer by layer. MODEL may also be the folder of a checkpoint, which is
    then shown without its base.
    """
    given = [name for name, value in asked.memory.items() if value is not None and value != ()]
    alone = os.path.isdir(asked.model) and (Path(asked.model) / "aimgraph.json").is_file()
    if given and (alone or checkpoint):
        raise ConfigError(f"a checkpoint says what its memory is: leave {given} out")
    with progress(f"loading {asked.model}") as shown:
        from aimgraph.web.report import write_page

        subjects = _subjects(asked, None if alone else checkpoint, alone, shown)
        shown.step(f"writing {path}")
        written = str(write_page(subjects, Path(path)))
    show(asked.as_json, {"path": written}, written)


def _subjects(asked: Asked, checkpoint: str | None, alone: bool, shown: Progress) -> "list[Subject]":
    from aimgraph.web.looked_at import planned_subject, subjects_of

    if alone:
        return subjects_of(asked.model)
    base = asked.base()
    if checkpoint is None:
        return [planned_subject(base, planned(asked, shown, base))]
    from aimgraph.checkpoint.load import load

    shown.step("loading the memory")
    return subjects_of(load(checkpoint, base, asked.example_inputs()))
