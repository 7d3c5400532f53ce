"""``aimgraph draw``: a plan as a picture."""

import click

from aimgraph.cli.asked import Asked
from aimgraph.cli.compare import planned
from aimgraph.cli.options import MODEL_EPILOG, NEW_FILE, model_options
from aimgraph.cli.output import show
from aimgraph.cli.progress import progress


@click.command("draw", epilog=MODEL_EPILOG)
@model_options
@click.option("--out", "path", type=NEW_FILE, required=True, help="png, svg or pdf file to write.")
def draw_command(asked: Asked, path: str) -> None:
    """Draw a plan: which layers of MODEL read, and how much."""
    with progress(f"loading {asked.model}") as shown:
        from aimgraph.planning.picture import check_ending, draw

        check_ending(path)
        plan = planned(asked, shown)
        shown.step("drawing")
        written = str(draw(plan, path))
    show(asked.as_json, {"path": written}, written)
