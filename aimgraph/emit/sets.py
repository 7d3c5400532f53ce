"""Memory sets: several memories of the same make around one base, one of which is in use, or one for each sample.

The set that a transform makes is called ``default`` and keeps its names. Every other one lives under ``aim.sets.<set>``
in the same tree; a copy of the graphs names what is in use at the moment, so that a set costs nothing at run time, and
no parameter ever changes its name or its place in the order.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from aimgraph.compiler.aim_paths import AIM, DEFAULT, SETS, aim_path
from aimgraph.copies import copy_module
from aimgraph.emit.concat import refuse_concat
from aimgraph.emit.draw_memory import draw_memory
from aimgraph.emit.fixed_reads import refuse_zero_reads, settle_reads
from aimgraph.emit.record import record_of
from aimgraph.emit.set_names import check_known, member
from aimgraph.errors import ConfigError
from aimgraph.planning.reads import MemoryPlan
from aimgraph.planning.start import start_of
from aimgraph.runtime.memory import Memory, put_module
from aimgraph.runtime.opaque import OpaqueCall

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def add_set(
    aim: nn.Module, name: str, *, share_reads: bool = False, like: str | None = None, filled: bool = False
) -> None:
    """See `AimModule.add_memory_set`; `filled` says that all values are still to come."""
    record = record_of(aim)
    _check_name(name, [DEFAULT, *record.sets])
    refuse_concat(aim, f"memory set {name!r}: read weights are part of the layers' own weights")
    if like is not None:
        check_known(record, [like])
    if share_reads:
        _check_shareable(aim, name, filled=filled)
    made = nn.Module()
    for memory in record.plan.memories:
        made.add_module(memory.name, _new_memory(aim, memory, name, share_reads=share_reads, like=like))
    put_module(aim, f"{SETS}.{name}", made)
    if not share_reads:
        _add_opaque_calls(aim, name)
    record.sets[name] = share_reads
    settle_reads(aim)
    made.train(aim.training)


def _check_name(name: str, taken: Sequence[str]) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"memory set {name!r}: a set's name is a letter followed by letters, digits or '_'")
    if hasattr(nn.Module(), name):
        raise ConfigError(f"memory set {name!r}: every torch.nn.Module has a member of that name")
    if name in taken:
        raise ConfigError(f"memory set {name!r} is there already; the sets are {list(taken)}")


def _check_shareable(aim: nn.Module, name: str, *, filled: bool) -> None:
    for memory in record_of(aim).plan.memories:
        if memory.updates:
            raise ConfigError(
                f"memory set {name!r}: share_reads=True shares the weights of reads, and memory {memory.name!r} has "
                "updates, which have weights and statistics of their own: leave share_reads out"
            )
    if not filled:
        refuse_zero_reads(aim, f"memory set {name!r}")


def _new_memory(aim: nn.Module, memory: MemoryPlan, name: str, *, share_reads: bool, like: str | None) -> Memory:
    """A memory like the default one; its values are fresh, or those of the set `like`."""
    old = aim.get_submodule(aim_path(memory.name) if like is None else member(aim_path(memory.name), aim, like))
    assert isinstance(old, Memory)
    if share_reads:
        return Memory(copy_module(old.source).requires_grad_(memory.config.trainable))
    made: Memory = copy_module(old)
    default = aim.get_submodule(aim_path(memory.name))
    assert isinstance(default, Memory)
    if like is not None and record_of(aim).sets.get(like):
        made.reads, made.views = copy_module(default.reads), copy_module(default.views)
    made.requires_grad_(True)
    made.source.requires_grad_(memory.config.trainable)
    if like is None:
        draw_memory(aim, memory, made, start_of(memory, name))
    return made


def _add_opaque_calls(aim: nn.Module, name: str) -> None:
    """Modules that are kept as one call, reading the set's weights."""
    own: dict[int, Any] = {id(None): None}
    for memory in record_of(aim).plan.memories:
        for part in ("reads", "views"):
            mine = aim.get_submodule(f"{SETS}.{name}.{memory.name}.{part}")
            default = aim.get_submodule(aim_path(memory.name, part))
            own |= {id(module): mine.get_submodule(path) for path, module in default.named_modules()}
    for path, call in list(aim.get_submodule(AIM).named_modules()):
        if isinstance(call, OpaqueCall) and not path.startswith("sets."):
            reads = tuple(replace(read, read=own[id(read.read)], view=own[id(read.view)]) for read in call.reads)
            root, values, why = call.aim_borrowed[0], call.needs_values, call.reason
            made = OpaqueCall(root, call.path, reads, call.layers, needs_values=values, reason=why)
            put_module(aim, f"{SETS}.{name}.{path}", made)


def remove_set(aim: nn.Module, name: str) -> None:
    """See `AimModule.remove_memory_set`."""
    record = record_of(aim)
    if name == DEFAULT:
        raise ConfigError("the default memory set can't be removed: aimgraph.strip gives the base back")
    check_known(record, [name])
    if name == record.chosen or name in (record.samples or ()):
        raise ConfigError(f"memory set {name!r} is in use: use another one first")
    del aim.get_submodule(SETS)._modules[name]
    del record.sets[name]
    settle_reads(aim)
    if not record.sets:
        del aim.get_submodule(AIM)._modules["sets"]


def own_parameters(aim: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameters of a set, without those that it shares."""
    check_known(record_of(aim), [name])
    there = aim.get_submodule(AIM if name == DEFAULT else f"{SETS}.{name}")
    memories = (there.get_submodule(memory.name) for memory in record_of(aim).plan.memories)
    return [parameter for memory in memories for parameter in memory.parameters()]
