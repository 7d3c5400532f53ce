"""Arms that train a part of a frozen base, or LoRA beside it."""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from aimgraph.api.transform import plan
from aimgraph.bench.frozen import StandsStill, lora_layers, with_lora
from aimgraph.compiler.graph_tools import submodule_at
from aimgraph.copies import copy_module, is_of_torch
from aimgraph.errors import ConfigError
from aimgraph.experiment.arms.making import Making
from aimgraph.experiment.recipe import Part
from aimgraph.reproducible import is_inexact, kept_randomness, plain_attention
from aimgraph.runtime.layer_kinds import is_layer
from aimgraph.torch_private import NormBase
from aimgraph.user_code import told_error

Choose = Callable[[Making], Iterator[nn.Parameter]]
"""Gives some parameters of the base."""


def some(choose: Choose) -> Callable[[Making], nn.Module]:
    """An arm that trains some parameters of a frozen base."""

    def make(making: Making) -> nn.Module:
        making.needs_frozen("trains a part of")
        making.base.requires_grad_(False)
        for parameter in choose(making):
            parameter.requires_grad_(True)
        return StandsStill(making.base)

    return make


def last_layer(making: Making) -> Iterator[nn.Parameter]:
    """The parameters of the layer that the base calls last.

    Raises:
        ConfigError: That is the call of a function.
    """
    called = plan(making.base, making.x).called
    last = submodule_at(making.base, called[-1]) if called else None
    if last is None:
        told = f"is the call of a function, {called[-1]}" if called else "is no convolution or linear layer"
        raise ConfigError(
            f"'last-layer': the last layer of {making.recipe.model} {told}, which has no parameters of its own: leave "
            "it out, or make it a module"
        )
    yield from _trainable(last)


def biases(making: Making) -> Iterator[nn.Parameter]:
    """All that is called ``bias``."""
    named = making.base.named_parameters()
    yield from (one for name, one in named if name.rpartition(".")[2] == "bias" and is_inexact(one))


def norms(making: Making) -> Iterator[nn.Parameter]:
    """Scales and offsets of all norms."""
    kinds = (NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    yield from (one for module in making.base.modules() if isinstance(module, kinds) for one in _trainable(module))


def everything(making: Making) -> Iterator[nn.Parameter]:
    """All parameters."""
    yield from _trainable(making.base)


def _trainable(module: nn.Module) -> Iterator[nn.Parameter]:
    yield from (parameter for parameter in module.parameters() if is_inexact(parameter))


_PARTS: dict[Part, Choose] = {"last-layer": last_layer, "biases": biases, "norms": norms}


def also_trained(making: Making) -> list[nn.Parameter]:
    """The parameters of the parts that an arm trains besides what its kind does.

    Raises:
        ConfigError: The base is not frozen, or has none.
    """
    if making.arm.also and not making.recipe.frozen:
        raise ConfigError(
            f"also = {list(making.arm.also)} of the arm {making.arm.kind!r} names parts of a frozen base: set frozen = "
            "true, or leave also out, as all of the base is trained"
        )
    found = []
    for part in making.arm.also:
        chosen = list(_PARTS[part](making))
        if not chosen:
            raise ConfigError(f"also = {part!r}: {making.recipe.model} has none: leave it out")
        found += chosen
    return found


def lora(making: Making) -> nn.Module:
    """LoRA, by peft, on every layer that peft adapts.

    peft puts a layer of torch's own class beside the one that it adapts. Where a subclass pads or scales in its own
    forward the two would give different things; and where attention takes the weight of a layer and does not call it,
    nothing would be learned. Such layers are left out, and noted.

    Raises:
        ConfigError: None is left, or peft can't adapt the base.
    """
    making.needs_frozen("is LoRA beside")
    base, rank = making.base, making.arm.rank
    every, called = [path for path, module in base.named_modules() if is_layer(module)], _called(making)
    fitting = [path for path in lora_layers(base, rank) if path in called and is_of_torch(base.get_submodule(path))]
    left = [path for path in every if path not in fitting]
    told = f"{', '.join(left[:4])}{f' and {len(left) - 4} more' if len(left) > 4 else ''}"
    why = f"not called, not of torch's own classes, transposed, or of groups that do not share out a rank of {rank}"
    if not fitting:
        raise ConfigError(f"the arm 'lora': peft adapts no layer of {making.recipe.model}; {told}: {why}")
    if left:
        making.notes.append(f"lora: {len(left)} of {len(every)} layers are left out, as they are {why}: {told}")
    return _adapted(making, fitting)


def _called(making: Making) -> set[str]:
    """Paths of the layers that the base calls in eval mode."""
    found: set[str] = set()
    copied = copy_module(making.base).eval()
    for path, module in copied.named_modules():
        if is_layer(module):
            module.register_forward_pre_hook(lambda _, __, path=path: found.add(path))
    with torch.no_grad(), kept_randomness(), plain_attention():
        copied(making.x)
    return found


def _adapted(making: Making, layers: list[str]) -> nn.Module:
    try:
        adapted = with_lora(making.base, making.arm.rank, layers)
        with torch.no_grad(), kept_randomness():
            copy_module(adapted).eval()(making.x)
    except ConfigError:
        raise
    except Exception as error:  # whatever peft, or the base's own forward around it, raises
        raise ConfigError(
            f"the arm 'lora': peft can't adapt {making.recipe.model} ({told_error(error)}): leave the arm out"
        ) from error
    return adapted
