"""``aimgraph widen``: which channels of a model can grow, and what they cost."""

from typing import Any

import click

from aimgraph.cli import known
from aimgraph.cli.asked import Asked
from aimgraph.cli.click_parts import Names
from aimgraph.cli.options import NEW_FOLDER, base_options
from aimgraph.cli.output import show
from aimgraph.cli.progress import progress
from aimgraph.errors import ConfigError

_EPILOG = "MODEL is as for aimgraph plan. Exit codes are those of the other commands."


def _number(text: str) -> float | int:
    try:
        return int(text) if text.lstrip("+").isdecimal() else float(text)
    except ValueError:
        raise ConfigError(f"{text!r}: give a factor such as 1.5, or a whole number") from None


@click.command("widen", epilog=_EPILOG)
@base_options
@click.option("--parameters", metavar="FACTOR|N", help="A budget for the whole: 1.5 times as many, or how many.")
@click.option(
    "--widths",
    multiple=True,
    metavar="PATTERN=FACTOR|N",
    help="Layers: 1.5 times as wide, or N channels more. Repeatable.",
)
@click.option(
    "--how",
    type=Names(known.HOWS.value),
    default="copy",
    show_default=True,
    help="New channels are copies of old ones, or fresh ones that nothing reads at first.",
)
@click.option(
    "--source",
    "--to-source",
    "folder",
    type=NEW_FOLDER,
    metavar="FOLDER",
    help="Write it as plain PyTorch into this folder.",
)
def widen_command(asked: Asked, parameters: str | None, widths: tuple[str, ...], how: Any, folder: str | None) -> None:
    """Widen MODEL, and show what has grown and what stays.

    The result is compared with MODEL, and what stays has a reason.
    """
    given = {pattern: _number(width) for pattern, width in map(_pair, widths)} or None
    budget = None if parameters is None else _number(parameters)
    with progress(f"loading {asked.model}") as shown:
        from aimgraph.api.to_source import to_source
        from aimgraph.api.widen import widen, widen_plan

        base = asked.base()
        shown.step("widening")
        inputs = asked.example_inputs()
        plan = widen_plan(base, inputs, given, parameters=budget, how=how)
        if folder:
            shown.step("writing")
            written = to_source(widen(base, inputs, given, parameters=budget, how=how), folder, inputs)
    also: dict[str, Any] = {"source": written.to_dict()} if folder else {}
    show(asked.as_json, plan.to_dict() | also, f"{plan}\n{written}" if folder else str(plan))


def _pair(text: str) -> tuple[str, str]:
    pattern, found, width = text.rpartition("=")
    if not (found and pattern and width):
        raise ConfigError(f"--widths={text!r}: give PATTERN=FACTOR or PATTERN=N, e.g. 'layer1.*=1.5'")
    return pattern, width
