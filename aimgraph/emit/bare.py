"""The base inside a transformed module, around the same modules and tensors."""

from collections import OrderedDict
from typing import Any

from torch import nn

from aimgraph.compiler.aim_paths import AIM
from aimgraph.emit.concat import join_concat_weights, split_concat_weights
from aimgraph.emit.record import GRAPH_STATE, MODULE_DICTS, record_of
from aimgraph.torch_private import WrappedHook


def bare(aim: nn.Module) -> nn.Module:
    """An instance of the base's class around the modules and tensors of `aim`.

    Layers in concat form still hold their read weights; see `split_layers`.
    """
    record = record_of(aim)
    base = record.base_class.__new__(record.base_class)
    keep = {*MODULE_DICTS, "training", *record.base_attributes}
    vars(base).update(
        (key, value) for key, value in vars(aim).items() if (key in keep or "_hook" in key) and key not in GRAPH_STATE
    )
    vars(base).update(hooks_of_the_base(vars(base)))
    vars(base)["_modules"] = {name: module for name, module in aim._modules.items() if name != AIM}
    return base


def hooks_of_the_base(state: dict[str, Any]) -> dict[str, Any]:
    """State-dict hooks without the two that an `AimModule` registers for itself, apart from any module.

    torch wraps a load hook together with a reference to its module; see `rebind_hooks`.
    """
    ours = (split_concat_weights, join_concat_weights)
    saved: dict[int, Any] = state["_state_dict_hooks"]
    loaded: dict[int, Any] = state["_load_state_dict_pre_hooks"]
    return {
        "_state_dict_hooks": OrderedDict((key, hook) for key, hook in saved.items() if hook not in ours),
        "_load_state_dict_pre_hooks": OrderedDict(
            (key, (wrapped.hook, wrapped.with_module)) for key, wrapped in loaded.items() if wrapped.hook not in ours
        ),
    }


def rebind_hooks(module: nn.Module) -> None:
    """Wrap the load hooks that `hooks_of_the_base` took apart for `module`."""
    hooks: dict[int, Any] = module._load_state_dict_pre_hooks
    for key, (hook, with_module) in list(hooks.items()):
        hooks[key] = WrappedHook(hook, module if with_module else None)
