"""What a command is asked about: a model, its inputs and its memories. Torch is imported when they are made."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimgraph.errors import ConfigError, ExampleInputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from aimgraph.config import AimConfig


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

    def base(self) -> "nn.Module":
        """The model, or the submodule of it that ``--within`` names."""
        from aimgraph.emit.parts import submodule
        from aimgraph.models_zoo.loader import load_model

        model = load_model(self.model)
        return model if self.within is None else submodule(model, self.within)

    def example_inputs(self) -> "tuple[Tensor, ...] | None":
        """Zeros of the shapes given on the command line; None if there are none.

        Raises:
            ExampleInputError: A shape is not of the form 1x3x224x224.
        """
        import torch

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

    def configs(self) -> "tuple[AimConfig, ...]":
        """The memories asked for: a preset or a file or one default, with the options on top.

        Raises:
            ConfigError: An option or the file is invalid.
        """
        from aimgraph.config import AimConfig, renamed_init

        given = {name: value for name, value in self.memory.items() if value is not None and value != ()}
        preset, file = given.pop("preset", None), given.pop("config_file", None)
        given = renamed_init(given)[0] if "init" in given else given
        if preset and file:
            raise ConfigError("--preset and --config exclude each other")
        start = _from_file(Path(file)) if file else preset_configs(preset) if preset else (AimConfig(),)
        if "shape" in given:
            given["shape"] = _dimensions(given["shape"], "--shape")
        if given.get("updates") == ("stages",):
            given["updates"] = "stages"
        return tuple(config.with_options(**given) for config in start)


def preset_configs(name: str) -> "tuple[AimConfig, ...]":
    """The memories of a function of `aimgraph.presets`."""
    from aimgraph import presets
    from aimgraph.config import AimConfig

    made = getattr(presets, name)()
    return (made,) if isinstance(made, AimConfig) else tuple(made)


def _from_file(path: Path) -> "tuple[AimConfig, ...]":
    from aimgraph.config import AimConfig

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
