"""Options that every command shares: the model, its inputs, and the memory."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aimgraph.cli import known
from aimgraph.cli.asked import Asked
from aimgraph.cli.click_parts import Names, close_to, replaced

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(exists=True, dir_okay=False)
FOLDER = click.Path(exists=True, file_okay=False)
"""What is read, and has to be there."""

NEW_FILE = click.Path(dir_okay=False)
NEW_FOLDER = click.Path(file_okay=False)
"""What is written."""

MODEL_EPILOG = f"""
MODEL is zoo/NAME ({", ".join(known.ZOO.value)}), torchvision/NAME, timm/NAME,
FILE.onnx (with aimgraph[onnx-in]), or package.module:factory, which imports and calls your own code.

Exit codes: 0 done; 1 checked and found different; 2 an option, an input, a file or the model's name is wrong;
3 this model can't be traced, planned or transformed; 4 the export failed; 70 a bug, please report it.
"""

if TYPE_CHECKING:
    _AnyType = click.ParamType[Any]
else:  # click before 8.4 has no argument for it
    _AnyType = click.ParamType


class _KindOrFolder(_AnyType):
    """A kind of source; of `aimgraph transform`, with a slash in it, a folder to write plain PyTorch into."""

    name = "source"
    kinds = known.SOURCES.value

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """What ``--help`` shows."""
        return f"[{'|'.join(self.kinds)}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The kind, or the folder as a path."""
        writes = ctx is not None and ctx.command.name == "transform"
        if value in self.kinds or isinstance(value, Path):
            return value
        if writes and ("/" in value or os.sep in value):
            return Path(value)
        more = f"; as a folder for plain PyTorch, write ./{value}, or give --to-source {value}" if writes else ""
        near = close_to(value, self.kinds)
        return self.fail(f"{value!r} is not one of {', '.join(map(repr, self.kinds))}{more}.{near}", param, ctx)


def _choice(known_names: known.Known) -> Names:
    return Names(known_names.value)


_MEMORY = (
    click.option("--preset", type=_choice(known.PRESETS), help="Begin with the options of the article or its author."),
    click.option("--config", "config_file", type=FILE, help="Read options from this JSON file: one object or a list."),
    click.option("--name", metavar="NAME", help="Name of the memory.  [default: memory]"),
    click.option(
        "--shape", metavar="ROWSxCOLSxCHANNELS|N", help="Shape of the memory; by default as large as --budget allows."
    ),
    click.option(
        "--budget",
        type=float,
        metavar="FRACTION",
        help=f"Most parameters to add, as a fraction of the model's.  [default: {known.BUDGET.value}]",
    ),
    click.option(
        "--sites",
        multiple=True,
        metavar="GLOB|re:REGEX",
        help="Layers that read the memory; by default all. Repeatable.",
    ),
    click.option(
        "--exclude", multiple=True, metavar="GLOB|re:REGEX", help="Layers that don't read the memory. Repeatable."
    ),
    click.option("--source", type=_KindOrFolder(), help="What gives the memory's values.  [default: parameter]"),
    click.option(
        "--fixed", "trainable", is_flag=True, flag_value=False, default=None, help="Don't train the memory's values."
    ),
    click.option(
        "--read",
        type=_choice(known.READS),
        help="How the memory gets the size of a layer's input: padded with zeros, or resampled.  [default: reshape]",
    ),
    click.option(
        "--updates",
        multiple=True,
        metavar="stages|PATH",
        help="Write into the memory after each resolution (stages), or after the module at PATH. Repeatable.",
    ),
    click.option("--block", type=_choice(known.BLOCKS), help="What writes at --updates.  [default: conv_sigmoid]"),
    click.option(
        "--pool", type=_choice(known.POOLS), help="Write the mean of the batch, in place of a memory for each sample."
    ),
    click.option(
        "--mode",
        type=_choice(known.MODES),
        help="What an update does: replace the memory, or mix into it through a learned gate.  [default: replace]",
    ),
    click.option(
        "--carry",
        type=_choice(known.CARRIES),
        help="How the memory reaches the next batch: by the optimiser, or as a stored state.  [default: gradient]",
    ),
    click.option(
        "--rate", type=float, metavar="NUMBER", help="Step of the carried state, above 0 and up to 1.  [default: 0.1]"
    ),
    click.option("--write-in-eval", is_flag=True, default=None, help="Write the carried state in eval mode, too."),
    click.option(
        "--start",
        type=_choice(known.STARTS),
        help="Which factor of a read is zero before training.  [default: zero_reads]",
    ),
    click.option(
        "--start-scale",
        type=float,
        metavar="NUMBER",
        help="Standard deviation of drawn values; with --start zero_values a factor on the read weights.",
    ),
    replaced("--init", "--start zero_reads or --start drawn", type=click.Choice(["zero", "default"])),
    click.option(
        "--lowering",
        type=_choice(known.LOWERINGS),
        help="Add the memory's contribution to a layer's output, or widen the layer.  [default: split]",
    ),
    click.option("--seed", type=int, metavar="N", help="Seed of all numbers that are drawn.  [default: 0]"),
)

_BASE = (
    click.argument("model"),
    click.option("--within", metavar="PATH", help="Look at the submodule at PATH only; --input is then what it takes."),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="SIZExSIZE...",
        help="Shape of an input, batch first, e.g. 1x3x224x224. Repeatable.",
    ),
)
_BATCHES = click.option(
    "--example-batches", "batches", metavar="N,M", help="Two batch sizes that MODEL takes, if only some: 4,8."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines on stdout, nothing else.")


def model_options(command: F) -> Callable[..., None]:
    """MODEL, --input, the memory's options and --json, which `command` takes as one `Asked`, before its own options."""
    return _taking(command, (*_BASE, _BATCHES, *_MEMORY, JSON))


def base_options(command: F) -> Callable[..., None]:
    """The same without a memory's options."""
    return _taking(command, (*_BASE, JSON))


def plan_options(command: F) -> F:
    """--costs and --all, of commands that print a plan."""
    for option in (
        click.option("--all", "every_layer", is_flag=True, help="Print every layer on a line of its own, and why."),
        click.option("--costs", is_flag=True, help="Print what every form of a read costs, too."),
    ):
        command = option(command)
    return command


def _taking(command: F, options: Sequence[Callable[[Any], Any]]) -> Callable[..., None]:
    for option in reversed(options):
        command = option(command)

    @functools.wraps(command)
    def with_asked(
        model: str,
        within: str | None,
        inputs: tuple[str, ...],
        as_json: bool,
        batches: str | None = None,
        **settings: Any,
    ) -> None:
        names = ("preset", "config_file", "init", *known.OPTIONS.value)
        memory = {name: settings.pop(name) for name in names if name in settings}
        command(Asked(model, within, inputs, memory, as_json, batches), **settings)

    return with_asked
