"""Which models can be transformed at all; the others are refused before anything is copied."""

from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from aimgraph.compiler.aim_paths import AIM
from aimgraph.errors import PlanError
from aimgraph.runtime.layer_kinds import is_layer
from aimgraph.torch_private import GRAPH_NAMES, compiled_from
from aimgraph.tracing.wrapped import check_wrapped

RESERVED = ("graph", "code", "recompile", "_record", *GRAPH_NAMES)
"""Names that a torch.fx.GraphModule needs for itself."""


_METHODS = ("reset_memory", "add_memory_set", "remove_memory_set", "memory_sets", "memory_set", "use", "using")
"""Methods and properties of an `aimgraph.AimModule`, which its graph would find in place of members of the base."""


_QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
    "torch.nn.quantized",
    "torch.nn.intrinsic.quantized",
)
"""Modules of torch whose weights are packed integers; dynamic ones take and give floats."""


def check_base(base: Any) -> None:
    """Refuse what can't be transformed.

    Raises:
        PlanError: Wrapped, sharded, quantised, scripted, transformed already, or with reserved names.
    """
    kind = type(base).__name__
    if not isinstance(base, nn.Module):
        named = (
            "; of a name, aimgraph.models_zoo.loader.load_model makes one, "
            'load_model("torchvision/resnet18"), and the command line does: aimgraph plan torchvision/resnet18'
        )
        raise PlanError(f"a torch.nn.Module is needed, this is a {kind}{named if isinstance(base, str) else ''}")
    check_wrapped(base)
    for path, module in base.named_modules():
        _check_submodule(path, module)
    if isinstance(base, torch.jit.ScriptModule):
        raise PlanError(f"{kind} is a scripted model, which torch.fx can't trace: transform the original module")
    if is_layer(base):
        raise PlanError(
            f"the model is a single {kind}: wrap it, torch.nn.Sequential(model), so that the layer has a path"
        )
    if "forward" in vars(base):
        raise PlanError(f"forward of this {kind} was replaced on the instance: define it in a class, e.g. a subclass")
    if type(base).__call__ is not nn.Module.__call__:
        raise PlanError(f"{kind} has a __call__ of its own, and a transform keeps its forward: define that instead")
    _check_names(base, kind)


def _check_names(base: nn.Module, kind: str) -> None:
    members = {*base._modules, *base._parameters, *base._buffers}
    held = {*members, *vars(base)}
    if AIM in held:
        raise PlanError(f"{kind} has a member named {AIM!r}, where a transform puts what it adds: rename it")
    shadowed = [name for name in _METHODS if name in members]
    if shadowed:
        raise PlanError(f"{kind} has members named {shadowed}, as methods of a transformed module are: rename them")
    taken = [name for name in RESERVED if name in held]
    if taken:
        raise PlanError(f"{kind} has members named {taken}, which a torch.fx.GraphModule keeps for itself: rename them")


def _check_submodule(path: str, module: nn.Module) -> None:
    if compiled_from(module) is not None:
        what = f"its submodule {path!r}" if path else f"the model ({type(module).__name__})"
        instead = f"the model with {path}._orig_mod in its place" if path else "model._orig_mod"
        raise PlanError(f"{what} is compiled: transform {instead}, then compile the result, or parts of it")
    if isinstance(module, fx.GraphModule) and AIM in module._modules:
        place = f"its submodule {path!r}" if path else "the model"
        raise PlanError(
            f"{place} is transformed already: use aimgraph.strip to get the base back, and give one "
            "transform all memories as a list of configs"
        )
    kind = type(module).__module__
    if kind.startswith(_QUANTISED) and "dynamic" not in kind and hasattr(module, "zero_point"):
        raise PlanError(
            f"{path or 'the model'} ({type(module).__name__}) is quantised: its weight is packed integers, which no "
            "memory can be added to; transform the float model, train its memory, and quantise afterwards"
        )
    tensors = *module._parameters.values(), *module._buffers.values()
    if any(isinstance(tensor, UninitializedParameter | UninitializedBuffer) for tensor in tensors):
        raise PlanError(f"{path} ({type(module).__name__}) has no shape yet: run the model once first")
