"""Read weights that no file holds: they are drawn again, as ``start="zero_values"`` does, and their digest is compared.

A file of values alone holds b of the U(-b, b) that each read weight was drawn from, 8 bytes a read, so that a later
formula for b changes nothing of it. The numbers come from the seed: see `aimgraph.runtime.start`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from aimgraph.checkpoint.entries import key_prefix, memory_entry, shortened
from aimgraph.checkpoint.spec import DrawnEntry, LayerEntry, MemoryEntry, PartEntry, ReadEntry
from aimgraph.compiler.aim_paths import DEFAULT, aim_path
from aimgraph.config import AimConfig
from aimgraph.emit.draw_memory import drawn_again
from aimgraph.emit.fixed_reads import fix_reads
from aimgraph.emit.module import AimModule
from aimgraph.emit.record import record_of
from aimgraph.emit.set_names import member
from aimgraph.errors import CheckpointError, ConfigError
from aimgraph.planning.reads import MemoryPlan, Read
from aimgraph.planning.start import start_of
from aimgraph.runtime.layers import layer_at, stored_weight

SCALES = "scales"
"""What the keys of the scales begin with; they are no part of any state dict."""

_LARGEST = 1e38
"""A scale is below it: twice that is no float32."""

_REMEDY = 'save with what="memory"'


def scales_key(path: str, memory: str) -> str:
    """Key of the scales of a memory, one for each of its reads, in a part of the model."""
    return key_prefix(SCALES, path) + memory


def base_digest(layers: Mapping[str, LayerEntry]) -> str:
    """SHA-256 of the fingerprint of a base."""
    return _sha256([[key, *entry.model_dump().values()] for key, entry in layers.items()])


def plan_digest(reads: Iterable[ReadEntry]) -> str:
    """SHA-256 of what a plan says of the reads: layers, channels, grids."""
    return _sha256([list(read.model_dump(mode="json").values()) for read in reads])


def _sha256(data: object) -> str:
    return hashlib.sha256(json.dumps(data, separators=(",", ":")).encode()).hexdigest()


def drawn_entry(part: AimModule, memory: MemoryPlan, config: dict[str, object]) -> MemoryEntry:
    """A memory as a file of values alone has it: its read weights by their digest.

    Raises:
        CheckpointError: They are not as they were drawn.
    """
    whole = memory_entry(memory, config)
    reads = _drawn(part, memory, memory.config, scales_of(part, memory).tolist())
    _refuse_others(part, memory, reads, DEFAULT, _REMEDY)
    sites = tuple(shortened(dict.fromkeys(read.site for read in memory.reads)))
    drawn = DrawnEntry(sites=sites, plan=plan_digest(whole.reads), sha256=_digest(reads.values()))
    return MemoryEntry(config=config, shape=whole.shape, reads=(), updates=(), drawn=drawn)


def scales_of(part: AimModule, memory: MemoryPlan) -> Tensor:
    """The b that each read weight was drawn with, float64, in graph order."""
    scales = record_of(part).scales
    return torch.tensor([scales[memory.name, read.name] for read in memory.reads], dtype=torch.float64)


def refuse_written(part: AimModule, memory_set: str | None) -> None:
    """Refuse values alone where something else than drawn read weights would be missing.

    Args:
        part: A transformed part.
        memory_set: The only set that is to be saved; all of them if left out.

    Raises:
        CheckpointError: A memory has updates, other starts, or reads with weights of their own; or a set has its own.
    """
    record = record_of(part)
    for memory in record.plan.memories:
        place = f'what="values": memory {memory.name!r}'
        if memory.updates:
            raise CheckpointError(f"{place} has updates, whose weights are trained: {_REMEDY}")
        if any(read.lowering == "concat" for read in memory.reads):
            raise CheckpointError(f"{place} is in concat form, where reads are part of the layers' weights: {_REMEDY}")
        if memory.config.start != "zero_values":
            raise CheckpointError(
                f"{place} was made with start={memory.config.start!r}, so that its read weights are trained: "
                f'{_REMEDY}, or transform with start="zero_values" and aimgraph.freeze_reads'
            )
        for view in part.get_submodule(aim_path(memory.name, "views")).children():
            if any(True for _ in (*view.parameters(), *view.buffers())):
                raise CheckpointError(f"{place} has reads with tensors of their own ({type(view).__name__}): {_REMEDY}")
    own = [name for name, shared in record.sets.items() if not shared and memory_set in (None, name)]
    if own:
        raise CheckpointError(
            f'what="values": memory set {own[0]!r} has read weights of its own: {_REMEDY}, or one set of values with '
            "memory_set=..."
        )


def put_drawn(place: Path, part: AimModule, entry: PartEntry, tensors: Mapping[str, Tensor]) -> None:
    """Give a part the read weights that the values of a file are read by, and have them stand still.

    Raises:
        CheckpointError: They can't be drawn, or are others than those that the file was made with.
    """
    record = record_of(part)
    for memory, one in zip(record.plan.memories, entry.memories, strict=True):
        for name, weight in drawn_for(place, part, memory, one, tensors.get(scales_key(entry.path, one.name))).items():
            with torch.no_grad():
                _weight(part, memory, name, DEFAULT).copy_(weight)
        scales = tensors[scales_key(entry.path, one.name)].tolist()
        pairs = zip(memory.reads, scales, strict=True)
        record.scales = record.scales | {(memory.name, read.name): scale for read, scale in pairs}
    fix_reads(part, True)


def check_drawn(place: Path, part: AimModule, entry: PartEntry, tensors: Mapping[str, Tensor], memory_set: str) -> None:
    """Refuse the values of a file where they would be read by other weights than those they were trained with.

    Raises:
        CheckpointError: They would.
    """
    for memory, one in zip(record_of(part).plan.memories, entry.memories, strict=True):
        reads = drawn_for(place, part, memory, one, tensors.get(scales_key(entry.path, one.name)))
        _refuse_others(part, memory, reads, memory_set, 'use a checkpoint of what="memory"', f"{place}: ")


def drawn_for(
    place: Path, part: AimModule, memory: MemoryPlan, entry: MemoryEntry, scales: Tensor | None
) -> dict[str, Tensor]:
    """Name -> read weight in float32, as the seed and the scales of a file draw it.

    Args:
        place: The checkpoint, for messages.
        part: For the shapes of the weights.
        memory: Their plan.
        entry: What the file says of the memory.
        scales: Of the file.

    Raises:
        CheckpointError: The scales can't be used, or the weights are others than those that the file was made with.
    """
    numbers = _numbers(f"{place}: the scales of memory {entry.name!r}", scales, len(memory.reads))
    try:
        config = AimConfig.from_json(entry.config)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{place}: a memory's options are invalid: {error}") from error
    if config.start != "zero_values":
        raise CheckpointError(
            f"{place}: memory {entry.name!r} has start={config.start!r}, which values alone can't have"
        )
    reads = _drawn(part, memory, config, numbers)
    if entry.drawn is not None and _digest(reads.values()) != entry.drawn.sha256:
        raise CheckpointError(
            f"{place}: the read weights of memory {entry.name!r} as drawn here from seed {config.seed} have another "
            f"SHA-256 than in the file ({entry.drawn.sha256[:16]}...): seed or scales were changed, or this torch "
            f"({torch.__version__}) draws other numbers; load it with the torch that wrote it, and {_REMEDY} there"
        )
    return reads


def _numbers(told: str, scales: Tensor | None, count: int) -> list[float]:
    if scales is None or scales.dtype != torch.float64 or scales.shape != (count,):
        raise CheckpointError(f"{told} are not {count} numbers in float64, one for each read")
    numbers: list[float] = scales.tolist()
    if bad := [number for number in numbers if not 0 < number < _LARGEST]:
        raise CheckpointError(f"{told} hold {bad[0]}, which nothing can be drawn with")
    return numbers


def _drawn(part: AimModule, memory: MemoryPlan, config: AimConfig, scales: list[float]) -> dict[str, Tensor]:
    start = start_of(replace(memory, config=config))
    pairs = zip(memory.reads, scales, strict=True)
    return {read.name: drawn_again(read, _layer(part, memory, read), start, scale) for read, scale in pairs}


def _digest(reads: Iterable[Tensor]) -> str:
    found = hashlib.sha256()
    for weight in reads:
        found.update(weight.numpy().astype("<f4").tobytes())
    return found.hexdigest()


def _refuse_others(
    part: AimModule, memory: MemoryPlan, reads: Mapping[str, Tensor], memory_set: str, remedy: str, place: str = ""
) -> None:
    """Refuse read weights of a set that are not the drawn ones, bit for bit, in the dtypes of their layers."""
    for read in memory.reads:
        weight = _weight(part, memory, read.name, memory_set).detach()
        drawn = reads[read.name].to(weight.dtype)
        if not torch.equal(weight.cpu(), drawn):
            raise CheckpointError(
                f"{place}values alone need read weights as they were drawn, and that of memory {memory.name!r} at "
                f"{read.site} is another one (trained, or of another seed): {remedy}; before training, "
                "aimgraph.freeze_reads keeps them as they were drawn"
            )
        if not place and not read.function and weight.dtype != stored_weight(layer_at(part, read.site)).dtype:
            raise CheckpointError(f"the read weight at {read.site} is {weight.dtype}, unlike its layer: {remedy}")


def _layer(part: AimModule, memory: MemoryPlan, read: Read) -> nn.Module:
    return part.get_submodule(aim_path(memory.name, "reads", read.name))


def _weight(part: AimModule, memory: MemoryPlan, name: str, memory_set: str) -> Tensor:
    path = member(aim_path(memory.name, "reads", name), part, memory_set)
    return part.get_submodule(path).get_parameter("weight")
