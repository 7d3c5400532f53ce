"""Models that something else holds already: wrapped for several devices, cut into shards, or quantised.

A transform makes a graph of what a model computes. What a wrapper does around it, and tensors that are not what they
look like, would be lost: so each is refused, and its message says what comes first.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from aimgraph.errors import CheckpointError, PlanError
from aimgraph.torch_private import compiled_from

_SHARDED = "torch.distributed.fsdp"


_SPREAD = "torch.distributed.tensor"


_QUANTISED = "torchao"


_FIRST = {
    _SPREAD: "transform the model first, then spread the result",
    _QUANTISED: "transform the float model, train its memory, and quantise the base's layers of the result afterwards "
    "(quantize_ with a filter_fn that leaves out 'aim.')",
}
"""Package of a tensor's class -> what to do instead. By name: importing the packages takes seconds."""


_SAVED = {
    _SPREAD: "gather the state dict (get_model_state_dict of torch.distributed.checkpoint, with full_state_dict=True), "
    "load it into a model that is not spread, and save that",
    _QUANTISED: "save the memory before the base is quantised",
}


def check_wrapped(model: nn.Module) -> None:
    """Refuse a model of which a part is wrapped, or a parameter is no plain tensor.

    Raises:
        PlanError: Names the part, and what to transform in its place.
    """
    for path, module in model.named_modules():
        reason = _wrapped(module)
        if reason is not None:
            kind = type(module).__name__
            what = f"its submodule {path!r} is" if path else "the model is"
            instead = f"the model with {path}.module in its place" if path else "model.module"
            raise PlanError(f"{what} {reason.format(kind=kind, instead=instead)}")
        for name, parameter in module._parameters.items():
            if (matter := _matter(parameter, _FIRST)) is not None:
                raise PlanError(f"{path}{'.' if path else ''}{name} {matter}")


def held_by(module: Any) -> nn.Module | None:
    """The model that a wrapper runs: of several devices or processes, or compiled; None for any other module."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        held: nn.Module = module.module
        return held
    return compiled_from(module)


def unwrapped(model: Any) -> Any:
    """The model inside of all wrappers around it.

    Raises:
        CheckpointError: A part of it is wrapped, whose wrapper would give its tensors other names.
    """
    while (inner := held_by(model)) is not None:
        model = inner
    for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if held_by(module) is not None:
            raise CheckpointError(
                f"the submodule {path!r} is wrapped in {type(module).__name__}, and a checkpoint names tensors as in a "
                "model that is not wrapped: put what it wraps in its place, save or load, and wrap it again"
            )
    return model


def check_plain(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that a checkpoint can't hold.

    Raises:
        CheckpointError: Names the first of them.
    """
    for key, tensor in tensors.items():
        if (matter := _matter(tensor, _SAVED)) is not None:
            raise CheckpointError(f"{key} {matter}")


def _matter(tensor: Tensor | None, remedies: Mapping[str, str]) -> str | None:
    """What is the matter with a tensor, and what to do; None for a plain one."""
    package = _first(type(tensor), remedies)
    if package is None:
        return None
    matter = "spread over processes" if package == _SPREAD else "quantised"
    return f"is {matter} ({type(tensor).__name__}): {remedies[package]}"


def _wrapped(module: nn.Module) -> str | None:
    """What is said of a wrapper; None for any other module."""
    if isinstance(module, DataParallel | DistributedDataParallel):
        return "wrapped in {kind}: transform {instead}, then wrap the result"
    if _first(type(module), (_SHARDED,)) is None:
        return None
    if hasattr(module, "_fsdp_wrapped_module"):
        return "wrapped in {kind}: transform the model before it is wrapped, then wrap the result"
    return "sharded by fully_shard ({kind}): transform the model before that, then call fully_shard on the result"


def _first(kind: type, packages: Iterable[str]) -> str | None:
    """The first of `packages` that a class, or one that it inherits from, belongs to."""
    origins = [parent.__module__ for parent in kind.__mro__]
    return next((p for p in packages if any(o == p or o.startswith(f"{p}.") for o in origins)), None)
