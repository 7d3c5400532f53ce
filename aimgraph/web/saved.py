"""A checkpoint without its base: what its files say of the memories, their values and their read weights."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from aimgraph.checkpoint.entries import key_prefix, lengthened
from aimgraph.checkpoint.spec import MemoryEntry, PartEntry, Spec
from aimgraph.checkpoint.tensor_files import read_spec, read_tensors
from aimgraph.compiler.aim_paths import DEFAULT, SETS, aim_path, below_aim
from aimgraph.config import AimConfig
from aimgraph.distance import real_numbers
from aimgraph.planning.plan import Plan
from aimgraph.planning.reads import MemoryPlan, Read, ReadCall
from aimgraph.planning.sites import Skipped
from aimgraph.runtime.reads.view import ViewSpec
from aimgraph.runtime.specs import PARTS
from aimgraph.web.subject import Held, Key, Subject


def subjects_in(folder: str | os.PathLike[str]) -> list[Subject]:
    """The transformed parts that a checkpoint tells of.

    Raises:
        CheckpointError: It is missing, damaged or invalid.
    """
    place = Path(folder)
    spec = read_spec(place)
    tensors = read_tensors(place, spec)
    return [_subject(spec, part, tensors) for part in spec.parts]


def _subject(spec: Spec, part: PartEntry, tensors: Mapping[str, Tensor]) -> Subject:
    prefix = key_prefix(part.path)
    found = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    plan = _plan(spec, part, found)
    reads = {(memory.name, read.name): _tensor(found, memory.name, read.name, part.use) for memory, read in plan.reads}
    shapes: dict[str | Key, tuple[int, ...]] = {key: tuple(w.shape) for key, w in reads.items() if w is not None}
    norms = {key: float(real_numbers(w).double().norm()) for key, w in reads.items() if w is not None}
    held = {memory.name: tuple(_held(memory.name, memory.shape, found, part)) for memory in plan.memories}
    moved = any(norms.values()) if norms else None
    return Subject(part.path, plan, shapes, frozenset(), held, norms, moved, {}, tuple(_remarks(spec, part)), False)


def _plan(spec: Spec, part: PartEntry, tensors: Mapping[str, Tensor]) -> Plan:
    """As much of the plan as a checkpoint knows."""
    memories = tuple(_memory(entry, tensors, part.use) for entry in part.memories)
    return Plan(spec.base.name, (), base_parameters=0, layers=0, memories=memories)


def _memory(entry: MemoryEntry, tensors: Mapping[str, Tensor], used: str) -> MemoryPlan:
    known = {key: value for key, value in entry.config.items() if key not in PARTS or value in PARTS[key]}
    size = math.prod(entry.shape)
    config = AimConfig.from_json(known)
    reads = []
    for one in entry.reads:
        weight = _tensor(tensors, entry.name, one.name, used)
        calls = tuple(
            ReadCall("both", "", ViewSpec("", size, grid, one.channels), value)
            for grid, value in zip(one.grids, one.values, strict=True)
        )
        count = 0 if weight is None else weight.numel()
        reads.append(Read(one.site, one.name, "", one.channels, one.grids[0], count, 0, one.lowering, calls))
    if entry.drawn is not None:
        sites = lengthened(entry.drawn.sites)
        reads += [Read(site, site, "", 0, (), 0, 0, "split", ()) for site in sites]
    source = sum(t.numel() for key, t in tensors.items() if key.startswith(f"{aim_path(entry.name, 'source')}."))
    dropped = tuple(Skipped(where, "update", "writes into the memory") for where in entry.updates)
    scale = config.start_scale or 1.0
    return MemoryPlan(config, entry.shape, size, scale, source, tuple(reads), (), dropped)


def _path_in(path: str, used: str) -> str:
    return path if used == DEFAULT else f"{SETS}.{used}.{below_aim(path)}"


def _tensor(tensors: Mapping[str, Tensor], memory: str, read: str, used: str) -> Tensor | None:
    """A read weight of the set in use, which may share that of the default one; None if the file does not hold it."""
    path = f"{aim_path(memory, 'reads', read)}.weight"
    return tensors.get(_path_in(path, used), tensors.get(path))


def _held(memory: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor], part: PartEntry) -> Iterator[Held]:
    """Tensors of the source and of the carried state that have N values, of the set in use."""
    size = math.prod(shape)
    for kind, title in (("source", "source"), ("carry", "carried state")):
        start = f"{_path_in(aim_path(memory, kind), part.use)}."
        for key, tensor in tensors.items():
            if key.startswith(start) and tensor.numel() == size:
                yield Held(title, shape, tensor.flatten())


def _remarks(spec: Spec, part: PartEntry) -> Iterator[str]:
    yield (
        f"A checkpoint of aimgraph {spec.aimgraph} (what={spec.what!r}), read without its base: the graph of the "
        "network and the operations are not known. Give the model, and the folder as --checkpoint, to see them."
    )
    if spec.what == "values":
        yield "The file holds values alone. The read weights are drawn again when it is loaded."
    if part.sets:
        yield f"Memory sets: {', '.join((DEFAULT, *(one.name for one in part.sets)))}. Shown here: {part.use!r}."
    for memory in part.memories:
        if memory.updates:
            yield f"Memory {memory.name!r} is written behind {', '.join(memory.updates)}."
