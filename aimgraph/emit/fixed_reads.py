"""Read weights that stand still: those that memory sets share, and those that `aimgraph.freeze_reads` has stopped.

Both are the default set's. What required gradients before is noted, and does so again once nothing needs them fixed.
"""

from torch import nn

from aimgraph.compiler.aim_paths import aim_path
from aimgraph.emit.frozen import give_gradients
from aimgraph.emit.record import record_of
from aimgraph.errors import ConfigError


def fix_reads(aim: nn.Module, fixed: bool) -> None:
    """Note whether the read weights are to stand still whatever shares them, and have them do so."""
    record_of(aim).fixed_reads = fixed
    settle_reads(aim)


def stand_still(aim: nn.Module) -> bool:
    """Whether the read weights of the default set are not trained: sets share them, or `freeze_reads` stopped them."""
    record = record_of(aim)
    return record.fixed_reads or any(record.sets.values())


def settle_reads(aim: nn.Module) -> None:
    """Stop the gradients of the default set's reads, or give them back where nothing needs them fixed."""
    record = record_of(aim)
    if not stand_still(aim):
        give_gradients(aim, record.shared_reads)
        record.shared_reads = frozenset()
        return
    for memory in record.plan.memories:
        for path in (aim_path(memory.name, part) for part in ("reads", "views")):
            for name, parameter in aim.get_submodule(path).named_parameters(prefix=path):
                if parameter.requires_grad:
                    record.shared_reads |= {name}
                    parameter.requires_grad_(False)


def refuse_zero_reads(aim: nn.Module, place: str) -> None:
    """Refuse to fix read weights that are all zero: no values would change anything."""
    for memory in record_of(aim).plan.memories:
        reads = aim.get_submodule(aim_path(memory.name, "reads"))
        if not any(weight.is_meta or bool(weight.any()) for weight in reads.parameters()):
            raise ConfigError(
                f"{place}: the read weights of memory {memory.name!r} are all zero, so that no values would change "
                "anything, and none could be trained with the read weights frozen: train the default set first, or "
                'transform with start="zero_values"'
            )
