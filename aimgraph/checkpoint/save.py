"""save: a memory, or the whole model, as a strict spec beside a safetensors file."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from aimgraph.checkpoint.drawn import base_digest, drawn_entry, refuse_written, scales_key, scales_of
from aimgraph.checkpoint.entries import What, key_prefix, memory_entry, named
from aimgraph.checkpoint.fingerprint import fingerprint
from aimgraph.checkpoint.spec import BaseEntry, MemoryEntry, PartEntry, SetEntry
from aimgraph.checkpoint.tensor_files import write_files
from aimgraph.checkpoint.values import in_set, named_parts, of_sets, tensors_of, trainable_of, values_in
from aimgraph.compiler.aim_paths import DEFAULT
from aimgraph.emit.changed import refuse_changed
from aimgraph.emit.given import trained
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import refuse_offloaded
from aimgraph.emit.record import record_of
from aimgraph.emit.set_names import check_known
from aimgraph.errors import CheckpointError, ConfigError
from aimgraph.inputs.as_json import inputs_to_json
from aimgraph.inputs.examples import without_numbers
from aimgraph.planning.reads import MemoryPlan
from aimgraph.runtime.given import given_path
from aimgraph.tracing.wrapped import unwrapped
from aimgraph.version import __version__


def save(
    aim: nn.Module, folder: str | os.PathLike[str], *, what: What = "memory", memory_set: str | None = None
) -> Path:
    """Write the memory of `aim` into `folder`: ``aimgraph.json`` and a safetensors file beside it.

    A checkpoint that is there stays whole until the new one is: it is replaced by one rename.

    Args:
        aim: A transformed module, or a larger model with transformed parts. Of one that is wrapped (`DataParallel`,
            `DistributedDataParallel`, ``torch.compile``), what is wrapped is saved.
        folder: Where to; made if missing.
        what: ``"values"``: the values alone, of memories whose read weights are as ``start="zero_values"`` has drawn
            them (see `aimgraph.freeze_reads`): N numbers and 8 bytes a read. The file has SHA-256s of the drawn read
            weights and of the fingerprint of the base, which must be the same when it is loaded. ``"memory"``: sources,
            read weights, updates and carried state, to be loaded onto the same base, with a warning if parameters of
            the base were trained as well; ``"trainable"``: the parameters of the base that require gradients, too, with
            the buffers of their modules (a new head); ``"all"``: all of the base's weights and buffers, too.
        memory_set: Only this memory set, as if it were the only one, to be loaded as any other; by default all of them.

    Returns:
        The folder.

    Raises:
        PlanError: `aim` was not transformed, or a layer was changed after that.
        ConfigError: `what` is none of these, or there is no such memory set, or a source, read or block is a factory
            that is not registered.
        CheckpointError: A value is not a number, a submodule is wrapped, passes of your own have changed the model, it
            has no memory, or the files can't be written. With ``what="values"``: a read weight is not the drawn one, a
            memory has updates, another start or reads with tensors of their own, or a memory set has its own reads.
    """
    place = given_path(folder, "the folder of a checkpoint")
    if what not in get_args(What):
        raise ConfigError(f'what={what!r}: save takes what="values", what="memory", what="trainable" or what="all"')
    aim = unwrapped(aim)
    parts = named_parts(aim)
    for part in parts.values():
        _refuse_unloadable(part, what, memory_set)
    added, base = tensors_of(aim, parts, strict=what == "all")
    if memory_set is not None:
        added = {key: added[in_set(key, parts, memory_set)] for key in added if not of_sets(key, parts)}
    beside = {"trainable": trainable_of(aim, base), "all": base}.get(what, {})
    refuse_offloaded((beside | added).items(), "save", CheckpointError)
    if what in ("values", "memory"):
        _tell_of_the_trained(aim, parts, base, what, place)
    tensors = beside | (_alone(added, parts) if what == "values" else added)
    kind = record_of(aim).base_class if isinstance(aim, AimModule) else type(aim)
    about = {
        "aimgraph": __version__,
        "torch": str(torch.__version__),
        "what": what,
        "base": BaseEntry(name=kind.__name__, **_fingerprint(base, what)),
        "parts": tuple(_part_entry(path, part, what, whole=memory_set is None) for path, part in parts.items()),
    }
    write_files(place, tensors, about)
    return place


def _refuse_unloadable(part: AimModule, what: What, memory_set: str | None) -> None:
    """Refuse models of which a checkpoint would hold a part, or nothing, or what can't be loaded."""
    refuse_changed(part)
    if others := record_of(part).other_passes:
        raise CheckpointError(
            f"a checkpoint holds memories, and this model was also changed by {', '.join(others)}: save its "
            "state_dict(), and load it into the result of the same transform"
        )
    if not record_of(part).plan.memories:
        raise CheckpointError("a checkpoint holds memories, and this model has none (passes=()): save its state_dict()")
    if memory_set is not None:
        check_known(record_of(part), [memory_set])
    if what == "values":
        refuse_written(part, memory_set)


def _alone(added: Mapping[str, Tensor], parts: Mapping[str, AimModule]) -> dict[str, Tensor]:
    """The values, and the scales that their read weights are drawn with."""
    scales = {
        scales_key(path, memory.name): scales_of(part, memory)
        for path, part in parts.items()
        for memory in record_of(part).plan.memories
    }
    return values_in(added, parts) | scales


def _fingerprint(base: Mapping[str, Tensor], what: What) -> dict[str, Any]:
    layers = fingerprint(base)
    return {"sha256": base_digest(layers)} if what == "values" else {"layers": layers}


def _tell_of_the_trained(
    aim: nn.Module, parts: Mapping[str, AimModule], base: Mapping[str, Tensor], what: What, place: Path
) -> None:
    """Warn where a checkpoint of the memory, or of its values, leaves out what was trained beside it."""
    given = {key_prefix(path) + key: one for path, part in parts.items() for key, one in record_of(part).given.items()}
    if found := [name for name in trained(aim, given) if name in base]:
        told = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        warnings.warn(
            f'{place}: what="{what}" leaves out parameters of the base that were trained: {told}; save with '
            'what="trainable" to have them in the checkpoint, or save the base by its own means',
            stacklevel=3,
        )


def _part_entry(path: str, part: AimModule, what: What, *, whole: bool) -> PartEntry:
    record = record_of(part)
    sets = record.sets if whole else {}
    more: dict[str, bool] = {"fixed_reads": True} if record.fixed_reads and whole and what != "values" else {}
    return PartEntry(
        path=path,
        inputs=inputs_to_json(without_numbers(record.inputs) if what == "values" else record.inputs),
        frozen=record.frozen,
        enabled=record.enabled,
        memories=tuple(_memory_entry(part, memory, what) for memory in record.plan.memories),
        sets=tuple(SetEntry(name=name, shares_reads=shared) for name, shared in sets.items()),
        use=record.chosen if whole else DEFAULT,
        batches=record.batches,
        **more,
    )


def _memory_entry(part: AimModule, memory: MemoryPlan, what: What) -> MemoryEntry:
    config = named(memory.config).to_json()
    return drawn_entry(part, memory, config) if what == "values" else memory_entry(memory, config)
