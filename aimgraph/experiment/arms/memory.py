"""Arms with a memory: what `aimgraph.transform` makes of the base, and which part of the memory is trained."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph import presets
from aimgraph.api.controls import freeze_base, freeze_reads
from aimgraph.api.transform import plan, transform
from aimgraph.bench.frozen import StandsStill
from aimgraph.compiler.aim_paths import aim_path
from aimgraph.config import AimConfig
from aimgraph.copies import copy_module
from aimgraph.emit.parts import parts_of, submodule
from aimgraph.emit.record import record_of
from aimgraph.errors import ConfigError, PlanError
from aimgraph.experiment.arms.features_only import FeaturesOnly
from aimgraph.experiment.arms.making import Making
from aimgraph.reproducible import kept_randomness


def static(making: Making) -> nn.Module:
    """A memory that nothing writes."""
    making.needs_static()
    return _with_memory(making, AimConfig(**making.options))


def update(making: Making) -> nn.Module:
    """A memory that each forward writes."""
    if making.options.get("carry") == "state":
        raise ConfigError(
            "the arm 'update' forgets what it wrote, and its options say carry='state': leave it out, or give "
            'kind = "state"'
        )
    return _with_memory(making, AimConfig(**making.options))


def state(making: Making) -> nn.Module:
    """A memory that reaches the next batch."""
    return _with_memory(making, AimConfig(**making.fixed(carry="state")))


def article(making: Making) -> nn.Module:
    """The idea as the article states it."""
    return _with_memory(making, presets.article(**making.options))


def author(making: Making) -> nn.Module:
    """What the published notebook does, to networks whose layers have the names of its ResNet-50."""
    configs = [config.with_options(**making.options) for config in presets.author()]
    try:
        return _with_memory(making, *configs)
    except PlanError as error:
        raise ConfigError(
            f"the arm 'author' is for zoo/resnet50_keras, or a network whose layers have the names of its layers, and "
            f"{making.recipe.model} has not: {error}"
        ) from error


def features_only(making: Making) -> nn.Module:
    """Updates whose blocks see the features, and nothing of the memory."""
    options = making.options
    if options.get("carry", "gradient") != "gradient":
        raise ConfigError(
            f"the arm 'features-only' has no memory to carry, and its options say carry={options['carry']!r}: leave "
            "carry out"
        )
    block = partial(FeaturesOnly, block=options.get("block", "conv_sigmoid"))
    aim = _with_values_zero(_with_memory(making, AimConfig(**options | {"block": block})))
    _stop_unread(making, aim)
    return aim


def _stop_unread(making: Making, aim: nn.Module) -> None:
    """Stop what has no gradients: updates that the next one alone would see, and reads before the first update."""
    for part in parts_of(aim):
        for memory in record_of(part).plan.memories:
            empty = [one.site for one in memory.reads if all(call.value == 0 for call in one.calls)]
            for site in empty:
                part.get_submodule(aim_path(memory.name, "reads", site)).requires_grad_(False)
            if empty:
                making.notes.append(f"features-only: nothing is written before these layers read: {', '.join(empty)}")
            read = {call.value for one in memory.reads for call in one.calls}
            unread = [place for place in range(len(memory.updates)) if place + 1 not in read]
            for place in unread:
                part.get_submodule(aim_path(memory.name, "updates", place)).requires_grad_(False)
            if unread:
                where = ", ".join(memory.updates[place].spot.where for place in unread)
                making.notes.append(
                    f"features-only: {len(unread)} of {len(memory.updates)} updates are not trained, as no layer reads "
                    f"what they write before the next one: {where}"
                )


def zero(making: Making) -> nn.Module:
    """A static memory whose values are zero and stay."""
    return _with_values_zero(static(making))


def drawn_and_kept(making: Making) -> nn.Module:
    """A static memory whose values are as they were drawn."""
    making.needs_static()
    return _with_memory(making, AimConfig(**making.fixed(trainable=False)))


def coordinates(making: Making) -> nn.Module:
    """A static memory of coordinates, on the smallest grid of the base unless a shape is given."""
    making.needs_static()
    options = making.fixed(source="coordinates", trainable=False)
    if options.get("shape", "auto") == "auto":
        asked = {name: value for name, value in options.items() if name not in ("source", "trainable", "shape")}
        shape = plan(making.base, _inputs(making, asked.get("within")), **asked).memories[0].shape
        options["shape"] = (*shape[:2], 2) if len(shape) == 3 else shape
    return _with_memory(making, AimConfig(**options))


def values(making: Making) -> nn.Module:
    """A static memory of which the values alone are trained."""
    making.needs_frozen("trains the values of a memory beside")
    making.needs_static()
    return freeze_reads(_with_memory(making, AimConfig(**making.fixed(start="zero_values"))))


def added_by_memory(making: Making) -> int:
    """How many parameters the memory of an arm's options adds."""
    config = AimConfig(**making.options)
    return plan(making.base, _inputs(making, config.within), config=config).added_parameters


def sites_of(making: Making) -> dict[str, bool]:
    """Path of each layer that would read -> whether it is the call of a function, which no module makes."""
    config = AimConfig(**making.options)
    reads = plan(making.base, _inputs(making, config.within), config=config).reads
    below = f"{config.within}." if config.within else ""
    return {f"{below}{read.site}": read.function for _, read in reads}


def _with_memory(making: Making, *configs: AimConfig) -> nn.Module:
    """The base with memories, which alone are trained where it is frozen."""
    concat = any(config.lowering == "concat" for config in configs)
    frozen = making.recipe.frozen
    if concat and frozen:
        raise ConfigError(
            f'the arm {making.arm.kind!r} has its read weights in the weights of layers (lowering = "concat"), which '
            'stand still where the base is frozen: give it options = {lowering = "split"}'
        )
    within = configs[0].within
    aim: nn.Module = transform(making.base, _inputs(making, within), config=configs, inplace=not concat)
    _check_written(making, aim)
    if not frozen:
        return aim
    freeze_base(aim)
    return aim if within is None else _AroundMemory(aim)


def _check_written(making: Making, aim: nn.Module) -> None:
    """Refuse a memory that was to be written, and of which no layer reads what was."""
    memories = [memory for part in parts_of(aim) for memory in record_of(part).plan.memories]
    if any(memory.config.updates is not None for memory in memories) and not any(one.updates for one in memories):
        dropped = [f"{item.path}: {item.reason}" for memory in memories for item in memory.dropped]
        raise ConfigError(
            f"the arm {making.arm.kind!r} of {making.recipe.model} would write nothing that is read "
            f"({'; '.join(dropped) or 'it has no place for an update'}): name updates before layers that read, or give "
            'kind = "static"'
        )


class _AroundMemory(StandsStill):
    """A frozen model with memories in some part: that part follows the mode of this, all else stays in eval mode."""

    def train(self, mode: bool = True) -> "_AroundMemory":
        """Set the mode of this module and of what the memories have."""
        super().train(mode)
        for part in parts_of(self.model):
            part.train(mode)
        return self


def _inputs(making: Making, within: str | None) -> Any:
    """The examples, or what the submodule that gets the memory is called with for them, as (args, kwargs)."""
    if within is None:
        return making.x
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    copied = copy_module(making.base).eval()
    part = submodule(copied, within)
    part.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad(), kept_randomness():
        copied(making.x)
    if not seen:
        raise ConfigError(f"within={within!r}: {making.recipe.model} does not call that part: name one that it calls")
    return seen[0]


def _with_values_zero(aim: nn.Module) -> nn.Module:
    """Have all values be zero, and stay.

    Raises:
        ConfigError: A source of the user's own gives something else.
    """
    for part in parts_of(aim):
        for memory in record_of(part).plan.memories:
            source: Any = part.get_submodule(aim_path(memory.name, "source"))
            source.requires_grad_(False)
            with torch.no_grad():
                for parameter in source.parameters():
                    parameter.zero_()
            _check_zero(memory.name, source)
    return aim


@torch.no_grad()
def _check_zero(name: str, source: nn.Module) -> None:
    given: Tensor = source()
    if bool(given.any()):
        raise ConfigError(
            f"memory {name!r}: the source {type(source).__name__} gives other values than zero where its parameters "
            "are zero: give the arm another source"
        )
