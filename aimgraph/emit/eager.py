"""The base itself, with what it reads added call by call: what a transformed module computes, without its graphs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from aimgraph.emit.record import record_of
from aimgraph.emit.set_in_use import in_use
from aimgraph.planning.reads import MemoryPlan, Read, ReadCall
from aimgraph.runtime.call_names import CallNames
from aimgraph.runtime.opaque import OpaqueCall, OpaqueRead, OpaqueReadCall

Place = tuple[str, int]
"""Name of a call, and how many dimensions its input has."""


def why_not_eager(aim: nn.Module) -> str:
    """Why `eager_forward` can't stand for `aim`; empty if it can."""
    if record_of(aim).concat_sites:
        return "its read weights are part of the base's own weights"
    if record_of(aim).other_passes:
        return f"its graph is changed by other passes ({', '.join(record_of(aim).other_passes)})"
    if any(memory.updates for memory in record_of(aim).plan.memories):
        return "it reads what the features have written"
    if not all(call.name for memory in record_of(aim).plan.memories for read in memory.reads for call in read.calls):
        return "it was made before plans named their calls"
    return ""


def eager_forward(base: nn.Module, aim: nn.Module, *, train: bool) -> Callable[..., Any]:
    """What the base gives when every call that `aim` reads at is summed with what it reads.

    The base's own forward runs; its calls are told apart by their names and their order, as inside a module
    that can't be traced. Nothing is taken from the graphs of `aim` but its plan and its read layers.

    Args:
        base: What `aim` was made from, in the mode to run in.
        aim: The transformed module, one for which `why_not_eager` gives no reason.
        train: Whether it stands for the train graph.
    """
    graphs = ("both", "train" if train else "eval")
    values, reads, added = [], [], in_use(aim)
    for memory in record_of(aim).plan.memories:
        value = added.get_submodule(f"{memory.name}.source")()
        last = _last_turns(memory, graphs)
        further = set(last)
        for read in memory.reads:
            layer = added.get_submodule(f"{memory.name}.reads.{read.name}")
            view = added.get_submodule(f"{memory.name}.{read.view.path}") if read.view else None
            for item in _reads(read, layer, graphs, last, further):
                values.append(value)
                reads.append(replace(item, view=view))
    return partial(_EagerBase(base, "", tuple(reads), record_of(aim).layers, needs_values=False), values)


class _EagerBase(OpaqueCall):
    """The whole base, in which what `aim` keeps as one call counts its calls for itself, as it does there."""

    def _names(self) -> CallNames:
        names = super()._names()
        opaque_paths = frozenset(read.opaque[0] for read in self.reads if read.opaque is not None)
        return CallNames(names.module, names.paths, names.layers, opaque_paths)


@dataclass(frozen=True)
class _ByTurn(OpaqueRead):
    """A read at some of the calls of one name.

    Attributes:
        turns: Number of a call -> how it reads.
        last: The last number of a call of that name on inputs of as many dimensions, this read's or another's.
        further: Whether it is read at calls that come after it, one more than there were, as inside an opaque module.
    """

    turns: dict[int, OpaqueReadCall] = field(default_factory=dict)
    last: int = 0
    further: bool = True

    def call(self, number: int) -> OpaqueReadCall | None:
        """How the call of this number reads."""
        if number <= self.last:
            return self.turns.get(number)
        return super().call(number) if self.further else None


def _last_turns(memory: MemoryPlan, graphs: tuple[str, ...]) -> dict[Place, int]:
    """The turn of the last one that reads, outside of opaque modules."""
    last: dict[Place, int] = {}
    for read in memory.reads:
        for call in read.calls:
            if call.graph in graphs and not call.opaque:
                place = (call.name, _opaque_call(call).rank)
                last[place] = max(call.turn, last.get(place, 0))
    return last


def _opaque_call(call: ReadCall) -> OpaqueReadCall:
    return OpaqueReadCall(call.spec, call.mean, call.grouped_batch)


def _reads(
    read: Read, layer: nn.Module, graphs: tuple[str, ...], last: dict[Place, int], further: set[Place]
) -> Iterator[OpaqueRead]:
    """How a site reads in these graphs: by the name of its calls, the dimensions of the input, and what they are in.

    Args:
        read: Of the plan.
        layer: Its read layer.
        graphs: Names of graphs.
        last: Of `_last_turns`.
        further: Places without a read for calls that come after the last one; the first to come takes them.
    """
    traced: dict[Place, dict[int, OpaqueReadCall]] = {}
    inside: dict[tuple[str, int, tuple[str, int]], list[OpaqueReadCall]] = {}
    for call in read.calls:
        if call.graph in graphs:
            made = _opaque_call(call)
            if call.opaque:
                inside.setdefault((call.name, made.rank, (call.opaque, call.turn)), []).append(made)
            else:
                traced.setdefault((call.name, made.rank), {})[call.turn] = made
    for place, turns in traced.items():
        calls = tuple(turns.values())
        yield _ByTurn(place[0], layer, calls, turns=turns, last=last[place], further=place in further and not read.left)
        further.discard(place)
    for (name, _, opaque), calls_inside in inside.items():
        yield OpaqueRead(name, layer, tuple(calls_inside), opaque)
