"""The ways to train a base that are compared: the same base and initial weights, and what each of them trains."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.api.controls import freeze_base
from aimgraph.api.transform import plan, transform
from aimgraph.api.widen import widen
from aimgraph.bench.frozen import StandsStill, lora_layers, with_lora
from aimgraph.compiler.aim_paths import is_added
from aimgraph.compiler.graph_tools import submodule_at
from aimgraph.errors import ConfigError
from aimgraph.experiment.recipe import Arm, Recipe
from aimgraph.models_zoo.loader import load_model
from aimgraph.runtime.accumulate import accumulate
from aimgraph.torch_private import NormBase


@dataclass(frozen=True)
class Made:
    """What an arm trains.

    Attributes:
        module: It gives logits, [B, classes].
        learns: Name -> parameter that is to be trained.
        added: Parameters that are no part of the base.
    """

    module: nn.Module
    learns: dict[str, nn.Parameter]
    added: int


def made(recipe: Recipe, arm: Arm, seed: int, x: Tensor) -> Made:
    """The module of an arm.

    Args:
        recipe: Says what the base is, and whether it is frozen.
        arm: What to make of it.
        seed: Of the initial weights and of the memory.
        x: Some examples.

    Raises:
        ConfigError: The arm trains nothing of such a base.
    """
    torch.manual_seed(seed)
    base = load_model(recipe.model)
    size = sum(parameter.numel() for parameter in base.parameters())
    module = _KINDS[arm.kind](recipe, arm, base, x, seed)
    learns = {name: one for name, one in module.named_parameters() if one.requires_grad}
    added = sum(parameter.numel() for parameter in module.parameters()) - size
    return Made(module, learns, added)


def _base(recipe: Recipe, arm: Arm, base: nn.Module, x: Tensor, seed: int) -> nn.Module:
    if recipe.frozen:
        base.requires_grad_(False)
        return StandsStill(base)
    return base


def _memory(recipe: Recipe, arm: Arm, base: nn.Module, x: Tensor, seed: int) -> nn.Module:
    options = {"seed": seed} | arm.options
    aim: nn.Module = transform(base, x, inplace=True, **options)
    return freeze_base(aim) if recipe.frozen else aim


def _random(recipe: Recipe, arm: Arm, base: nn.Module, x: Tensor, seed: int) -> nn.Module:
    aim = _memory(recipe, arm, base, x, seed)
    for name, parameter in aim.named_parameters():
        if is_added(name) and ".source." in name:
            parameter.requires_grad_(False)
    return aim


def _zero(recipe: Recipe, arm: Arm, base: nn.Module, x: Tensor, seed: int) -> nn.Module:
    aim = _random(recipe, arm, base, x, seed)
    with torch.no_grad():
        for name, parameter in aim.named_parameters():
            if is_added(name) and ".source." in name:
                parameter.zero_()
    return aim


def _wide(recipe: Recipe, arm: Arm, base: nn.Module, x: Tensor, seed: int) -> nn.Module:
    added = plan(base, x, seed=seed, **arm.options).added_parameters
    size = sum(parameter.numel() for parameter in base.parameters())
    return widen(base, x, parameters=size + added, noise=_UNEQUAL)


_UNEQUAL = 0.1
"""How unequally copies are read, so that they learn different things."""


class BiasMaps(nn.Module):
    """A base with a learned number for each place and channel of the outputs of some layers.

    Args:
        base: It is changed: its layers have hooks.
        layers: Paths of the layers.
        x: Some examples.
    """

    def __init__(self, base: nn.Module, layers: list[str], x: Tensor) -> None:
        super().__init__()
        self.base = base
        self.maps = nn.ParameterDict()
        shapes = _output_shapes(base, layers, x)
        for path in layers:
            value = nn.Parameter(torch.zeros(shapes[path]))
            self.maps[re.sub(r"\W", "_", path)] = value
            base.get_submodule(path).register_forward_hook(_adds(value))

    def forward(self, x: Tensor) -> Any:
        """What the base gives."""
        return self.base(x)


def _adds(value: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return accumulate(output, value)

    return add


def _output_shapes(base: nn.Module, layers: list[str], x: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes of what layers give for one sample."""
    found: dict[str, tuple[int, ...]] = {}
    hooks = []
    for path in layers:

        def note(_: nn.Module, __: Any, output: Tensor, path: str = path) -> None:
            found[path] = (1, *output.shape[1:])

        hooks.append(base.get_submodule(path).register_forward_hook(note))
    training = base.training
    with torch.no_grad():
        base.eval()(x[:1])
    base.train(training)
    for hook in hooks:
        hook.remove()
    return found


def _bias_map(recipe: Recipe, arm: Arm, base: nn.Module, x: Tensor, seed: int) -> nn.Module:
    reads = plan(base, x, seed=seed, **arm.options).reads
    layers = list(dict.fromkeys(read.site for _, read in reads if submodule_at(base, read.site) is not None))
    return BiasMaps(_base(recipe, arm, base, x, seed), [_below(recipe, path) for path in layers], x)


def _below(recipe: Recipe, path: str) -> str:
    """The path of a layer in what `_base` gives."""
    return f"model.{path}" if recipe.frozen else path


def _some(choose: Callable[[nn.Module, Tensor], Iterator[nn.Parameter]]) -> Callable[..., nn.Module]:
    """An arm that trains some parameters of a frozen base."""

    def make(recipe: Recipe, arm: Arm, base: nn.Module, x: Tensor, seed: int) -> nn.Module:
        if not recipe.frozen:
            raise ConfigError(
                f"the arm {arm.kind!r} trains a part of a frozen base: set frozen = true, or leave it out"
            )
        base.requires_grad_(False)
        for parameter in choose(base, x):
            parameter.requires_grad_(True)
        return StandsStill(base)

    return make


def _last_layer(base: nn.Module, x: Tensor) -> Iterator[nn.Parameter]:
    called = [path for path in plan(base, x).called if submodule_at(base, path) is not None]
    yield from base.get_submodule(called[-1]).parameters()


def _biases(base: nn.Module, x: Tensor) -> Iterator[nn.Parameter]:
    yield from (parameter for name, parameter in base.named_parameters() if name.rpartition(".")[2] == "bias")


def _norms(base: nn.Module, x: Tensor) -> Iterator[nn.Parameter]:
    kinds = (NormBase, nn.LayerNorm, nn.GroupNorm)
    yield from (one for module in base.modules() if isinstance(module, kinds) for one in module.parameters())


def _all(base: nn.Module, x: Tensor) -> Iterator[nn.Parameter]:
    yield from base.parameters()


def _lora(recipe: Recipe, arm: Arm, base: nn.Module, x: Tensor, seed: int) -> nn.Module:
    if not recipe.frozen:
        raise ConfigError("the arm 'lora' is for a frozen base: set frozen = true, or leave it out")
    return with_lora(base, arm.rank, lora_layers(base, arm.rank))


_KINDS: dict[str, Callable[[Recipe, Arm, nn.Module, Tensor, int], nn.Module]] = {
    "base": _base,
    "static": _memory,
    "random": _random,
    "zero": _zero,
    "wide": _wide,
    "bias-map": _bias_map,
    "last-layer": _some(_last_layer),
    "biases": _some(_biases),
    "norms": _some(_norms),
    "full": _some(_all),
    "lora": _lora,
}
