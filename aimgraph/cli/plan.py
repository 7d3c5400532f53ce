"""``aimgraph plan``: what a transform would do."""

import click

from aimgraph.cli.asked import Asked
from aimgraph.cli.compare import planned
from aimgraph.cli.options import MODEL_EPILOG, model_options, plan_options
from aimgraph.cli.output import console, json_text
from aimgraph.cli.progress import progress


@click.command("plan", epilog=MODEL_EPILOG)
@model_options
@plan_options
def plan_command(asked: Asked, costs: bool, every_layer: bool) -> None:
    """Show what a transform of MODEL would do, and change nothing."""
    with progress(f"loading {asked.model}") as shown:
        found = planned(asked, shown)
    if asked.as_json:
        click.echo(json_text(found.to_dict()))
    else:
        found.print(console(), costs=costs, every_layer=every_layer)
