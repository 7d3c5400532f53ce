"""Transformed parts of a larger model: finding and replacing them."""

import difflib
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.emit.folded_module import FoldedModule
from aimgraph.emit.module import AimModule
from aimgraph.emit.one_forward import is_one_forward
from aimgraph.errors import AimgraphError, ConfigError, PlanError

M = TypeVar("M", bound=nn.Module)


def replace_module(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever `old` is registered below `root`."""
    for parent in root.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def replace_part(root: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put what was made of a part in its place; parameters that the rest of the model shares with it stay shared.

    Those that have other values now, as a weight with batch normalisation in it, are the part's own.
    """
    replace_module(root, old, new)
    held, shared = dict(old.named_parameters(remove_duplicate=False)), {id(one) for one in root.parameters()}
    for name, made in list(new.named_parameters(remove_duplicate=False)):
        was = held.get(name)
        if was is not None and id(was) in shared and _equal(was, made):
            owner, _, last = name.rpartition(".")
            new.get_submodule(owner)._parameters[last] = was


def _equal(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    return one.is_meta or torch.equal(one, other)


def parts_of(aim: Any) -> list[AimModule]:
    """The transformed parts of a model; the model itself, if it is one."""
    found = named_parts(aim) if isinstance(aim, nn.Module) else {}
    if not found:
        folded = isinstance(aim, nn.Module) and is_folded(aim)
        why = (
            "was folded, and this needs what it was folded from"
            if folded
            else "is not the result of aimgraph.transform"
        )
        raise PlanError(f"this {type(aim).__name__} has no memory: it {why}")
    return list(found.values())


def is_folded(model: nn.Module) -> bool:
    """Whether `aimgraph.fold` gave a model, or a part of it."""
    return any(isinstance(part, FoldedModule) for part in model.modules())


def named_parts(model: nn.Module) -> dict[str, AimModule]:
    """Path -> transformed part of a model; empty if there is none."""
    return {path: module for path, module in model.named_modules() if isinstance(module, AimModule)}


def with_own_forwards(model: M) -> M:
    """The model without what was put over the forwards of its transformed parts: a copy, if there is anything.

    Mixed precision of trainers, offloading and the like replace the forward of an instance.
    """
    if not any("forward" in vars(part) for part in named_parts(model).values()):
        return model
    model = copy_module(model)
    for path, part in named_parts(model).items():
        found = vars(part).pop("forward", None)
        if found is not None and not is_one_forward(found):  # trainers put the old one back on the instance
            warnings.warn(
                f"the forward of {path or 'the model'} is wrapped on the instance (mixed precision of a trainer, hooks "
                "for offloading, ...): what is made here is made without the wrapper",
                stacklevel=3,
            )
    return model


def refuse_offloaded(
    tensors: Iterable[tuple[str, Tensor]], task: str, error: type[AimgraphError] = ConfigError
) -> None:
    """Refuse tensors on the meta device, where hooks that offload weights leave them between calls.

    Args:
        tensors: With their names.
        task: What needs their values, for the message.
        error: To raise.
    """
    for name, tensor in tensors:
        if tensor.is_meta:
            layer, _, kind = name.rpartition(".")
            raise error(
                f"{layer or 'the model itself'}: its {kind} is on the meta device and has no values, and {task} needs "
                "them: take hooks that offload away first (accelerate.hooks.remove_hook_from_submodules(model)), or "
                "give the model its weights"
            )


def tensors_named(model: nn.Module, *, every_name: bool = False) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers themselves, with their names; one that has several comes once, or under `every_name`.

    Where a state dict has other keys, as for layers in concat form, these are the names of what the model holds.
    """
    once = not every_name
    return chain(model.named_parameters(remove_duplicate=once), model.named_buffers(remove_duplicate=once))


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The submodule at `path`.

    Raises:
        PlanError: There is none.
    """
    paths = [name for name, _ in model.named_modules() if name]
    if path not in paths:
        near = difflib.get_close_matches(path, paths, n=4, cutoff=0.4)
        hint = f"near misses: {', '.join(near)}" if near else f"there are: {', '.join(paths[:6])}"
        raise PlanError(f"within: {type(model).__name__} has no submodule {path!r}; {hint}")
    return model.get_submodule(path)
