"""The module of an arm, by its kind."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from aimgraph.compiler.aim_paths import AIM
from aimgraph.emit.parts import named_parts
from aimgraph.experiment.arms.bias_map import bias_map
from aimgraph.experiment.arms.frozen import also_trained, biases, everything, last_layer, lora, norms, some
from aimgraph.experiment.arms.making import Making
from aimgraph.experiment.arms.memory import (
    article,
    author,
    coordinates,
    drawn_and_kept,
    features_only,
    state,
    static,
    update,
    values,
    zero,
)
from aimgraph.experiment.arms.wide import wide
from aimgraph.experiment.recipe import Arm, Kind, Recipe
from aimgraph.models_zoo.loader import load_model
from aimgraph.reproducible import seeded


@dataclass(frozen=True)
class Made:
    """What an arm trains.

    Attributes:
        module: It gives logits, [B, classes].
        learns: Name -> parameter that is to be trained.
        added: Parameters that are no part of the base.
        memory: Those of `learns` that a memory has: values, read weights and updates. Read weights in concat form are
            part of the base's weights, and not among them.
        notes: What the user should know: how far ``wide`` is from what it was to reach, layers that were left out.
    """

    module: nn.Module
    learns: dict[str, nn.Parameter]
    added: int
    memory: dict[str, nn.Parameter] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def made(recipe: Recipe, arm: Arm, seed: int, x: Tensor) -> Made:
    """The module of an arm; what is noted of it is warned of, too.

    The base is the same for every arm, bit for bit, and where it is frozen nothing of it moves but what the arm trains.
    All random states are as before afterwards.

    Args:
        recipe: Says what the base is, and whether it is frozen.
        arm: What to make of it.
        seed: Of the initial weights and of the memory.
        x: Some examples, [B, ...].

    Raises:
        ConfigError: The arm does not go with such a base, or its options with its kind.
        PlanError: No memory can be placed, or nothing can be widened, as asked.
    """
    with seeded(seed):
        base = load_model(recipe.model)
        size = _size(base)
        making = Making(recipe, arm, base, x, seed)
        also = also_trained(making)
        module = _KINDS[arm.kind](making)
        for parameter in also:
            parameter.requires_grad_(True)
    for note in making.notes:
        warnings.warn(note, stacklevel=2)
    learns = {name: one for name, one in module.named_parameters() if one.requires_grad}
    own = {id(one) for part in named_parts(module).values() for one in part.get_submodule(AIM).parameters()}
    memory = {name: one for name, one in learns.items() if id(one) in own}
    return Made(module, learns, _size(module) - size, memory, tuple(making.notes))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


_KINDS: dict[Kind, Callable[[Making], nn.Module]] = {
    "base": Making.whole,
    "static": static,
    "update": update,
    "state": state,
    "article": article,
    "author": author,
    "features-only": features_only,
    "zero": zero,
    "random": drawn_and_kept,
    "coordinates": coordinates,
    "values": values,
    "bias-map": bias_map,
    "wide": wide,
    "last-layer": some(last_layer),
    "biases": some(biases),
    "norms": some(norms),
    "full": some(everything),
    "lora": lora,
}
