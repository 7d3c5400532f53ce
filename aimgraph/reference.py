"""The base itself, with what it reads added call by call: what a transformed module computes, without its graphs."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from aimgraph.calls import layer_paths
from aimgraph.layers import classify_layers
from aimgraph.module import AimModule
from aimgraph.plan import Read, ReadCall
from aimgraph.program import AIM
from aimgraph.runtime.leaf import LeafCall, LeafRead, MemoryLeaf


def no_reference(aim: AimModule) -> str:
    """Why `reference` can't stand for `aim`; empty if it can."""
    if aim._record.widened:
        return "its read weights are part of the base's own weights"
    if any(memory.updates for memory in aim._record.plan.memories):
        return "it reads what the features have written"
    return ""


def reference(base: nn.Module, aim: AimModule, *, train: bool) -> Callable[..., Any]:
    """What the base gives when every call that `aim` reads at is summed with what it reads.

    The base's own forward runs; its calls are told apart by their names and their order, as inside a module
    that can't be traced. Nothing is taken from the graphs of `aim` but its plan and its read layers.

    Args:
        base: What `aim` was made from, in the mode to run in.
        aim: The transformed module, one for which `no_reference` gives no reason.
        train: Whether it stands for the train graph.
    """
    graphs = ("both", "train" if train else "eval")
    values, reads = [], []
    for memory in aim._record.plan.memories:
        value = aim.get_submodule(f"{AIM}.{memory.name}.source")()
        for read in memory.reads:
            layer = aim.get_submodule(f"{AIM}.{memory.name}.reads.{read.name}")
            for calls in _by_rank(read, graphs):
                values.append(value)
                reads.append(LeafRead(read.site, layer, calls))
    layers = layer_paths(base, classify_layers(base))
    return partial(MemoryLeaf(base, "", tuple(reads), layers, needs_values=False), values)


def _by_rank(read: Read, graphs: tuple[str, ...]) -> list[tuple[LeafCall, ...]]:
    """How the calls of a site read in these graphs, those with inputs of as many dimensions together."""
    found: dict[int, list[LeafCall]] = {}
    for call in read.calls:
        if call.graph in graphs:
            made = _leaf_call(call)
            found.setdefault(made.rank, []).append(made)
    return [tuple(calls) for calls in found.values()]


def _leaf_call(call: ReadCall) -> LeafCall:
    return LeafCall(call.spec, call.mean, call.folded)
