"""The base itself, with what it reads added call by call: what a transformed module computes, without its graphs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from aimgraph.calls import layer_paths
from aimgraph.layers import classify_layers
from aimgraph.module import AimModule
from aimgraph.plan import Read
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
            for (name, _), turns in _turns(read, graphs).items():
                values.append(value)
                reads.append(_ByTurn(name, layer, tuple(turns.values()), turns))
    layers = layer_paths(base, classify_layers(base))
    return partial(MemoryLeaf(base, "", tuple(reads), layers, needs_values=False), values)


@dataclass(frozen=True)
class _ByTurn(LeafRead):
    """A read at some of the calls of one name.

    Attributes:
        turns: Number of a call -> how it reads.
    """

    turns: dict[int, LeafCall]

    def call(self, number: int) -> LeafCall | None:
        """How the call of this number reads, if it does."""
        return self.turns.get(number)


def _turns(read: Read, graphs: tuple[str, ...]) -> dict[tuple[str, int], dict[int, LeafCall]]:
    """How the calls of a site in these graphs read, by their name, the dimensions of the input, and their turn."""
    found: dict[tuple[str, int], dict[int, LeafCall]] = {}
    for call in read.calls:
        if call.graph in graphs:
            made = LeafCall(call.spec, call.mean, call.folded)
            found.setdefault((call.name, made.rank), {})[call.turn] = made
    return found
