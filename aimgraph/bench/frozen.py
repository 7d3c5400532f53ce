"""The ways to train a little beside a frozen network, to be timed side by side, and all of it.

``full``: the base with all its parameters. ``biases``: its biases alone. ``lora``: LoRA of rank 8 on every convolution
and linear layer, by peft. ``memory``: memories on a frozen base that keeps what torch keeps. ``lean``: the same, where
it keeps what the gradients need. In all but ``full`` the base's norms and dropout stand still.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from aimgraph.api.controls import freeze_base
from aimgraph.api.transform import transform
from aimgraph.config import AimConfig
from aimgraph.copies import copy_module
from aimgraph.emit.module import AimModule
from aimgraph.errors import ConfigError
from aimgraph.models_zoo.loader import import_torchvision
from aimgraph.runtime.layer_kinds import is_layer, kind_of
from aimgraph.runtime.layers import groups_of
from aimgraph.user_code import told_error

FROZEN = ("full", "biases", "lora", "memory", "lean")
RANK = 8


def build_frozen(
    model: nn.Module, example_inputs: Any, configs: Sequence[AimConfig], forms: Sequence[str] = FROZEN
) -> dict[str, nn.Module]:
    """`model` in several forms, each with parameters of its own; they train those that require gradients.

    Args:
        model: Any module that can be transformed; it is not changed.
        example_inputs: As for `aimgraph.transform`.
        configs: One per memory; ``start`` is set here, so that values and read weights have gradients.
        forms: Of `FROZEN`.

    Raises:
        ConfigError: No such form; or peft is not installed.
    """
    if unknown := [form for form in forms if form not in FROZEN]:
        raise ConfigError(f"forms: {unknown} are unknown; there are {', '.join(FROZEN)}")
    used = [config.with_options(start="drawn", start_scale=None) for config in configs]

    def memory(*, lean: bool) -> AimModule:
        made: AimModule = transform(model, example_inputs, config=used)
        return freeze_base(made, lean=lean)

    parts: dict[str, Callable[[], nn.Module]] = {
        "full": lambda: copy_module(model).requires_grad_(True),
        "biases": lambda: _biases(copy_module(model)),
        "lora": lambda: with_lora(copy_module(model), RANK, lora_layers(model, RANK)),
        "memory": lambda: memory(lean=False),
        "lean": lambda: memory(lean=True),
    }
    return {form: parts[form]() for form in forms}


class StandsStill(nn.Module):
    """A model in eval mode, in whatever mode this is.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()

    def train(self, mode: bool = True) -> "StandsStill":
        """Set the mode of this module alone."""
        self.training = mode
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives."""
        return self.model(*args, **kwargs)


def _biases(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] == "bias" and parameter.is_floating_point())
    return StandsStill(model)


def lora_layers(model: nn.Module, rank: int) -> list[str]:
    """Paths of the layers on which peft can put LoRA of a rank: groups have to share the rank out among them."""
    return [
        path
        for path, layer in model.named_modules()
        if is_layer(layer) and kind_of(layer).in_axis == 1 and rank % groups_of(layer) == 0
    ]


def with_lora(model: nn.Module, rank: int, layers: list[str]) -> nn.Module:
    """A model with LoRA on some layers, which alone is trained; its norms and dropout stand still.

    Raises:
        ConfigError: peft can't be imported.
    """
    try:
        if find_spec("torchvision"):
            import_torchvision()  # peft imports it, by way of transformers
        from peft import LoraConfig, get_peft_model
    except (ImportError, RuntimeError) as error:  # what it imports may fail in its own way
        raise ConfigError(
            f"the form 'lora' needs peft, which can't be imported ({told_error(error)}): pip install "
            "'aimgraph[bench]', or leave the form out"
        ) from error
    adapted: Any = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=layers))
    return StandsStill(adapted.base_model.model)


def trained(module: nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that require gradients."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
