"""A transformed module without memory sets: the one in use under the default names."""

from torch import nn

from aimgraph.compiler.aim_paths import AIM, DEFAULT, OPAQUE, SETS, below_aim
from aimgraph.copies import copy_module
from aimgraph.emit.module import AimModule
from aimgraph.emit.record import record_of
from aimgraph.errors import ConfigError


def settled(aim: AimModule) -> AimModule:
    """A copy in which the set in use is the only one, under the default names.

    Raises:
        ConfigError: Every sample has its own.
    """
    record = record_of(aim)
    if record.samples is not None:
        raise ConfigError("every sample has a memory set of its own: do this outside of using(), with one set in use")
    made: AimModule = copy_module(aim)
    if not record.sets:
        return made
    own = made.get_submodule(f"{SETS}.{record.chosen}") if record.chosen != DEFAULT else nn.Module()
    there = made.get_submodule(AIM)
    del there._modules["sets"]
    for memory in record.plan.memories:
        if memory.name in own._modules:
            mine, default = own.get_submodule(memory.name), there.get_submodule(memory.name)
            if record.sets[record.chosen]:
                mine.reads, mine.views = default.reads, default.views
            there._modules[memory.name] = mine
    opaque = below_aim(OPAQUE)
    if opaque in own._modules:
        there._modules[opaque] = own._modules[opaque]
    own_record = record_of(made)
    own_record.sets, own_record.chosen = {}, DEFAULT
    own_record.forget_sets()
    made._select()
    return made
