"""``aimgraph widen``: which channels of a model can grow, and what they cost."""

from typing import Any, get_args

import click

from aimgraph.api.to_source import to_source
from aimgraph.api.widen import widen, widen_plan
from aimgraph.cli.options import Asked, base_options
from aimgraph.cli.output import show, steps
from aimgraph.errors import ConfigError
from aimgraph.widen.build import How

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
@click.option("--how", type=click.Choice(get_args(How)), default="copy", help="Copies, or new ones that nothing reads.")
@click.option(
    "--source",
    "--to-source",
    "folder",
    type=click.Path(file_okay=False),
    help="Write it as plain PyTorch into this folder.",
)
def widen_command(asked: Asked, parameters: str | None, widths: tuple[str, ...], how: Any, folder: str | None) -> None:
    """Widen MODEL, compare it with MODEL, and show what has grown, and what stays and why."""
    given = {pattern: _number(width) for pattern, width in map(_pair, widths)} or None
    budget = None if parameters is None else _number(parameters)
    with steps(asked.model) as step:
        base = asked.base()
        step("widening")
        inputs = asked.example_inputs()
        plan = widen_plan(base, inputs, given, parameters=budget, how=how)
        if folder:
            step("writing")
            written = to_source(widen(base, inputs, given, parameters=budget, how=how), folder, inputs)
    also: dict[str, Any] = {"source": written.to_dict()} if folder else {}
    show(asked.as_json, plan.to_dict() | also, f"{plan}\n{written}" if folder else str(plan))


def _pair(text: str) -> tuple[str, str]:
    pattern, found, width = text.rpartition("=")
    if not (found and pattern and width):
        raise ConfigError(f"--widths={text!r}: give PATTERN=FACTOR or PATTERN=N, e.g. 'layer1.*=1.5'")
    return pattern, width
