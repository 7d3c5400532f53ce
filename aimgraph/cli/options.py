"""Options that every command shares: the model, its inputs, and the memory."""

import functools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
import torch
from torch import Tensor, nn

from aimgraph import presets
from aimgraph.config import AimConfig, Kind, renamed_init
from aimgraph.emit.parts import submodule
from aimgraph.errors import ConfigError, ExampleInputError
from aimgraph.models_zoo.loader import load_model
from aimgraph.runtime.sources.given import GIVEN
from aimgraph.runtime.specs import PARTS

F = TypeVar("F", bound=Callable[..., Any])

PRESETS = {"article": (presets.article(),), "author": presets.author()}

FILE = click.Path(exists=True, dir_okay=False)
FOLDER = click.Path(exists=True, file_okay=False)
"""What is read, and has to be there."""


def replaced(option: str, by: str, *names: str, **settings: Any) -> Callable[[F], F]:
    """An option that says what another one says: it is taken, with a line on stderr, and stands in no help.

    Args:
        option: Its name.
        by: What to give instead.
        *names: Of its parameter.
        **settings: As for `click.option`.
    """

    def told(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        if value:
            click.echo(f"aimgraph: {option}: give {by} instead", err=True)
        return value

    return click.option(option, *names, hidden=True, callback=told, **settings)


class _KindOrFolder(click.ParamType[Any]):
    """A kind of source; of `aimgraph transform`, with a slash in it, a folder to write plain PyTorch into."""

    name = "source"
    kinds = tuple(name for name in PARTS["source"] if name != GIVEN)

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
        return self.fail(f"{value!r} is not one of {', '.join(map(repr, self.kinds))}{more}", param, ctx)


_MEMORY = (
    click.option("--preset", type=click.Choice(sorted(PRESETS)), help="Start from what the seed did."),
    click.option("--config", "config_file", type=FILE, help="JSON: one config or a list."),
    click.option("--name", help="Name of the memory."),
    click.option("--shape", help="ROWSxCOLSxCHANNELS or N; by default solved from --budget."),
    click.option("--budget", type=float, help="Most parameters to add, as a fraction of the base's."),
    click.option("--sites", multiple=True, help="Glob or re:REGEX of layers that read. Repeatable."),
    click.option("--exclude", multiple=True, help="Glob or re:REGEX of layers that don't. Repeatable."),
    click.option("--source", type=_KindOrFolder()),
    click.option("--fixed", "trainable", is_flag=True, flag_value=False, default=None, help="Don't train the values."),
    click.option("--read", type=click.Choice(list(PARTS["read"]))),
    click.option("--updates", multiple=True, help='"stages" or module paths. Repeatable.'),
    click.option("--block", type=click.Choice(list(PARTS["block"])), help="What writes at --updates."),
    click.option("--pool", type=click.Choice(["batch"])),
    click.option("--mode", type=click.Choice(["replace", "gated"])),
    click.option("--carry", type=click.Choice(["gradient", "state"])),
    click.option("--rate", type=float, help="Step of the carried state, in (0, 1]."),
    click.option("--write-in-eval", is_flag=True, default=None, help="Write the carried state in eval mode, too."),
    click.option("--start", type=click.Choice(get_args(Kind)), help="Which factor of a read is zero at the start."),
    click.option("--start-scale", type=float, help="Of what is drawn: deviation of values, or factor on reads."),
    replaced("--init", "--start zero_reads or --start drawn", type=click.Choice(["zero", "default"])),
    click.option("--lowering", type=click.Choice(["split", "concat"])),
    click.option("--seed", type=int),
)


@dataclass(frozen=True)
class Asked:
    """What every command is asked about: a model, its inputs and its memories.

    Attributes:
        model: Its name.
        within: Path of the one submodule to look at.
        inputs: Shapes of its inputs, e.g. ``1x3x224x224``.
        memory: The memory's options: fields of `AimConfig`, ``preset`` and ``config_file``; None or () if not given.
        as_json: Whether to print JSON.
        batches: Two batch sizes to look at the model with, e.g. ``4,8``.
    """

    model: str
    within: str | None
    inputs: tuple[str, ...]
    memory: dict[str, Any]
    as_json: bool
    batches: str | None = None

    def base(self) -> nn.Module:
        """The model, or the submodule of it that ``--within`` names."""
        model = load_model(self.model)
        return model if self.within is None else submodule(model, self.within)

    def example_inputs(self) -> tuple[Tensor, ...] | None:
        """Zeros of the shapes given on the command line; None if there are none.

        Raises:
            ExampleInputError: A shape is not of the form 1x3x224x224.
        """
        return tuple(torch.zeros(_dimensions(text, "--input")) for text in self.inputs) or None

    def example_batches(self) -> Any:
        """The two batch sizes given on the command line; None if there are none.

        Raises:
            ConfigError: They are not of the form 4,8.
        """
        if self.batches is None:
            return None
        sizes = self.batches.split(",")
        if len(sizes) != 2 or not all(size.strip().isdecimal() for size in sizes):
            raise ConfigError(f"--example-batches={self.batches!r}: give two batch sizes joined by a comma, e.g. 4,8")
        return tuple(map(int, sizes))

    def settings(self) -> dict[str, Any]:
        """The arguments of `aimgraph.transform` and `aimgraph.plan` that the options give."""
        return {"config": self.configs(), "example_batches": self.example_batches()}

    def configs(self) -> tuple[AimConfig, ...]:
        """The memories asked for: a preset or a file or one default, with the options on top.

        Raises:
            ConfigError: An option or the file is invalid.
        """
        given = {name: value for name, value in self.memory.items() if value is not None and value != ()}
        preset, file = given.pop("preset", None), given.pop("config_file", None)
        given = renamed_init(given)[0] if "init" in given else given
        if preset and file:
            raise ConfigError("--preset and --config exclude each other")
        start = _from_file(Path(file)) if file else PRESETS.get(preset, (AimConfig(),))
        if "shape" in given:
            given["shape"] = _dimensions(given["shape"], "--shape")
        if given.get("updates") == ("stages",):
            given["updates"] = "stages"
        return tuple(config.with_options(**given) for config in start)


def model_options(command: F) -> Callable[..., None]:
    """MODEL, --input, the memory's options and --json, which `command` takes as one `Asked`, before its own options."""
    return _taking(command, (*_BASE, _BATCHES, *_MEMORY, _JSON))


def base_options(command: F) -> Callable[..., None]:
    """The same without a memory's options."""
    return _taking(command, (*_BASE, _JSON))


_BASE = (
    click.argument("model"),
    click.option("--within", help="Path of the one submodule to look at; --input is then what it takes."),
    click.option("--input", "inputs", multiple=True, help="Shape of an input, e.g. 1x3x224x224. Repeatable."),
)
_BATCHES = click.option(
    "--example-batches", "batches", metavar="N,M", help="Two batch sizes that MODEL takes, if only some: 4,8."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines on stdout, nothing else.")


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
        names = ("preset", "config_file", "init", *AimConfig.model_fields)
        memory = {name: settings.pop(name) for name in names if name in settings}
        command(Asked(model, within, inputs, memory, as_json, batches), **settings)

    return with_asked


def _from_file(path: Path) -> tuple[AimConfig, ...]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    items = data if isinstance(data, list) else [data]
    if not all(isinstance(item, dict) for item in items):
        raise ConfigError(f"{path}: a config is a JSON object, or a list of them")
    return tuple(AimConfig.from_json(item) for item in items)


def _dimensions(text: str, option: str) -> tuple[int, ...]:
    parts = text.lower().replace(",", "x").split("x")
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ExampleInputError(f"{option}={text!r}: give positive sizes joined by x, e.g. 1x3x224x224")
    return tuple(int(part) for part in parts)
