"""What can be said of checkpoints without their base: sizes, norms, distances, means."""

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aimgraph.checkpoint.drawn import scales_key
from aimgraph.checkpoint.entries import key_prefix
from aimgraph.checkpoint.spec import MemoryEntry, SetEntry, Spec
from aimgraph.checkpoint.tensor_files import read_spec, read_tensors, write_files
from aimgraph.compiler.aim_paths import AIM, DEFAULT, SETS
from aimgraph.distance import wide
from aimgraph.errors import CheckpointError, ConfigError
from aimgraph.reproducible import is_inexact

KINDS = ("source", "reads", "updates", "carry")
"""What a memory consists of."""


@dataclass(frozen=True)
class MemorySummary:
    """One memory of a memory set of a checkpoint.

    Attributes:
        part: Path of the transformed part; empty for the model itself.
        memory_set: Name of the set.
        name: Of the memory.
        shape: Its shape.
        values: N.
        reads: Read weights that the file holds of it: none of a set that shares those of the default one, and none
            where the file holds values alone.
        updates: Updates.
        bytes: Of its tensors.
        norms: Kind -> Euclidean norm of all its values: of the source, the reads, the updates, the carried state.
    """

    part: str
    memory_set: str
    name: str
    shape: tuple[int, ...]
    values: int
    reads: int
    updates: int
    bytes: int
    norms: dict[str, float]


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint.

    Attributes:
        folder: Where it is.
        what: ``values``, ``memory``, ``trainable`` or ``all``.
        base: Class of its base.
        aimgraph: Version that wrote it.
        bytes: Of both files.
        memories: Its memories, once for every memory set.
    """

    folder: str
    what: str
    base: str
    aimgraph: str
    bytes: int
    memories: tuple[MemorySummary, ...]

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON-ready data."""
        return asdict(self)


@dataclass(frozen=True)
class Distance:
    """How far the values of one kind are apart in two checkpoints.

    Attributes:
        name: ``<memory>.source``, ``<memory>.reads.<site>``, ...; of a memory set, ``sets.<set>.<memory>.source``, ...
        norms: Euclidean norm of each; None for the one whose checkpoint has no such memory set.
        distance: Of their difference; None where one is not there.
        cosine: Of the angle between them; 1 where both are zero, 0 where one is, None where one is not there.
    """

    name: str
    norms: tuple[float | None, float | None]
    distance: float | None
    cosine: float | None


def summary(folder: str | os.PathLike[str]) -> CheckpointSummary:
    """What is in a checkpoint.

    Raises:
        CheckpointError: It is missing, damaged or invalid.
    """
    place = Path(folder)
    spec = read_spec(place)
    tensors = read_tensors(place, spec)
    memories = tuple(_summary(*place, tensors) for place in _places(spec))
    size = spec.file.bytes + (place / "aimgraph.json").stat().st_size
    return CheckpointSummary(str(folder), spec.what, spec.base.name, spec.aimgraph, size, memories)


def _summary(part: str, one: SetEntry, memory: MemoryEntry, tensors: Mapping[str, Tensor]) -> MemorySummary:
    prefix = _prefix(part, one.name, memory.name)
    mine = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    kinds = {kind: [t for key, t in mine.items() if key.startswith(f"{kind}.")] for kind in KINDS}
    norms = {kind: _norm(tensors) for kind, tensors in kinds.items() if tensors}
    values, size = math.prod(memory.shape), sum(tensor.nbytes for tensor in mine.values())
    reads, updates = 0 if one.shares_reads else len(memory.reads), len(memory.updates)
    return MemorySummary(part, one.name, memory.name, memory.shape, values, reads, updates, size, norms)


def distances(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> list[Distance]:
    """How far memories of the same make are apart, tensor by tensor in the order of the network, then set by set.

    Raises:
        CheckpointError: One can't be read, or memories or sets that both have are not of the same make.
    """
    sets = [{(part, one.name) for part, one, _ in _places(read_spec(Path(folder)))} for folder in (first, second)]
    (spec, ours), (other, theirs) = _alike([first, second], sets[0] & sets[1])
    keys = dict.fromkeys((*_memory_keys(spec), *_memory_keys(other)))
    return [_distance(key, ours.get(key), theirs.get(key)) for key in keys if _floats(key, ours, theirs)]


def _floats(key: str, *checkpoints: Mapping[str, Tensor]) -> bool:
    return all(is_inexact(tensors[key]) for tensors in checkpoints if key in tensors)


def _distance(key: str, ours: Tensor | None, theirs: Tensor | None) -> Distance:
    if ours is None or theirs is None:
        norms = tuple(None if one is None else float(_numbers(one).norm()) for one in (ours, theirs))
        return Distance(_shown(key), (norms[0], norms[1]), None, None)
    a, b = _numbers(ours), _numbers(theirs)
    one, other = float(a.norm()), float(b.norm())
    cosine = float(a @ b) / (one * other) if one and other else float(one == other)
    return Distance(_shown(key), (one, other), float((a - b).norm()), cosine)


def mean(
    folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], weights: Sequence[float] | None = None
) -> Path:
    """Write the weighted mean of memories of the same make, set by set, as a checkpoint.

    It is the mean of values and weights, tensor by tensor; of what they compute it is the mean only where they share
    either the values or the read weights.

    Args:
        folders: Checkpoints; of ``what="all"`` only the memory is taken.
        out: Where to write.
        weights: One for each; equal ones by default. They are used as they are.

    Raises:
        ConfigError: There are fewer than two checkpoints, or not as many weights.
        CheckpointError: One can't be read, they are not of the same make, or the result can't be written.
    """
    given = [1 / len(folders)] * len(folders) if weights is None else list(weights)
    if len(folders) < 2 or len(given) != len(folders) or not all(map(math.isfinite, given)):
        count = len(folders)
        raise ConfigError(f"{count} checkpoints and the weights {given}: give two or more, and a weight for each")
    read = _alike(folders)
    spec, first = read[0]
    made = {key: first[key] for key in spec.tensors if key in _scales(spec) or key in _memory_keys(spec)}
    for key, tensor in made.items():
        if is_inexact(tensor) and key not in _scales(spec):
            total = sum(weight * wide(tensors[key]) for weight, (_, tensors) in zip(given, read, strict=True))
            made[key] = torch.as_tensor(total).to(tensor.dtype)
    write_files(Path(out), made, dict(spec) | {"what": "values" if spec.what == "values" else "memory"})
    return Path(out)


def _alike(
    folders: Sequence[str | os.PathLike[str]], sets: Collection[tuple[str, str]] | None = None
) -> list[tuple[Spec, dict[str, Tensor]]]:
    """The checkpoints, whose memories have the same tensors.

    Args:
        folders: Of the checkpoints.
        sets: Paths of parts and names of their memory sets that are to be the same; by default all.

    Raises:
        CheckpointError: They don't.
    """
    specs = [read_spec(Path(folder)) for folder in folders]
    read = [(spec, read_tensors(Path(folder), spec)) for folder, spec in zip(folders, specs, strict=True)]
    first, *_ = makes = [_makes(spec, sets) for spec in specs]
    for folder, other in zip(folders, makes, strict=True):
        if other != first:
            key = min(set(first.items()) ^ set(other.items()))[0]
            ours, theirs = first.get(key, "not there"), other.get(key, "not there")
            raise CheckpointError(
                f"{folders[0]} and {folder} are not of the same make: {_shown(key)} is {ours} in the one and {theirs} "
                "in the other"
            )
    return read


def _makes(spec: Spec, sets: Collection[tuple[str, str]] | None) -> dict[str, str]:
    keys = _memory_keys(spec, sets)
    drawn = {
        f"{_prefix(part, one.name, memory.name)}reads": f"drawn ({memory.drawn.sha256[:8]}) onto {spec.base.sha256:.8}"
        for part, one, memory in _places(spec)
        if memory.drawn is not None and one.name == DEFAULT
    }
    return drawn | {key: f"{spec.tensors[key].dtype} {list(spec.tensors[key].shape)}" for key in keys}


def _places(spec: Spec) -> Iterator[tuple[str, SetEntry, MemoryEntry]]:
    """Every memory of every set of every part: path of the part, set, memory."""
    for part in spec.parts:
        for one in (SetEntry(name=DEFAULT, shares_reads=False), *part.sets):
            yield from ((part.path, one, memory) for memory in part.memories)


def _scales(spec: Spec) -> set[str]:
    """The tensors that read weights are drawn with."""
    return {scales_key(part, memory.name) for part, _, memory in _places(spec) if memory.drawn is not None}


def _memory_keys(spec: Spec, sets: Collection[tuple[str, str]] | None = None) -> list[str]:
    """The tensors of memories, of some sets or of all, set by set."""
    prefixes = [
        _prefix(part, one.name, memory.name)
        for part, one, memory in _places(spec)
        if sets is None or (part, one.name) in sets
    ]
    return [key for prefix in prefixes for key in spec.tensors if key.startswith(prefix)]


def _prefix(part: str, memory_set: str, memory: str) -> str:
    return key_prefix(part, AIM, memory) if memory_set == DEFAULT else key_prefix(part, SETS, memory_set, memory)


def _shown(key: str) -> str:
    return key.replace(f"{AIM}.", "", 1)


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(_numbers(t).square().sum()) for t in tensors if is_inexact(t)))


def _numbers(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in double precision, both parts of complex ones."""
    made = wide(tensor)
    return (torch.view_as_real(made) if made.is_complex() else made).flatten()
