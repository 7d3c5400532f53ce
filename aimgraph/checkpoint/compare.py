"""What can be said of checkpoints without their base: sizes, norms, distances, means."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aimgraph.checkpoint.entries import key_prefix
from aimgraph.checkpoint.spec import MemoryEntry, Spec
from aimgraph.checkpoint.tensor_files import read_spec, read_tensors, write_files
from aimgraph.compiler.aim_paths import AIM
from aimgraph.errors import CheckpointError, ConfigError

KINDS = ("source", "reads", "updates", "carry")
"""What a memory consists of."""


@dataclass(frozen=True)
class MemorySummary:
    """One memory of a checkpoint.

    Attributes:
        part: Path of the transformed part; empty for the model itself.
        name: Of the memory.
        shape: Its shape.
        values: N.
        reads: Read weights.
        updates: Updates.
        bytes: Of its tensors.
        norms: Kind -> Euclidean norm of all its values: of the source, the reads, the updates, the carried state.
    """

    part: str
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
        what: ``memory`` or ``all``.
        base: Class of its base.
        aimgraph: Version that wrote it.
        bytes: Of both files.
        memories: Its memories.
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
        name: ``<memory>.source``, ``<memory>.reads.<site>``, ...
        norms: Euclidean norm of each.
        distance: Of their difference.
        cosine: Of the angle between them; 1 where both are zero, 0 where one is.
    """

    name: str
    norms: tuple[float, float]
    distance: float
    cosine: float


def summary(folder: str | os.PathLike[str]) -> CheckpointSummary:
    """What is in a checkpoint.

    Raises:
        CheckpointError: It is missing, damaged or invalid.
    """
    place = Path(folder)
    spec = read_spec(place)
    tensors = read_tensors(place, spec)
    memories = tuple(_summary(part.path, memory, tensors) for part in spec.parts for memory in part.memories)
    size = spec.file.bytes + (place / "aimgraph.json").stat().st_size
    return CheckpointSummary(str(folder), spec.what, spec.base.name, spec.aimgraph, size, memories)


def _summary(part: str, memory: MemoryEntry, tensors: Mapping[str, Tensor]) -> MemorySummary:
    prefix = _prefix(part, memory.name)
    mine = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    kinds = {kind: [t for key, t in mine.items() if key.startswith(f"{kind}.")] for kind in KINDS}
    norms = {kind: _norm(tensors) for kind, tensors in kinds.items() if tensors}
    values, size = math.prod(memory.shape), sum(tensor.nbytes for tensor in mine.values())
    reads, updates = len(memory.reads), len(memory.updates)
    return MemorySummary(part, memory.name, memory.shape, values, reads, updates, size, norms)


def distances(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> list[Distance]:
    """How far two memories of the same make are apart, tensor by tensor in the order of the network.

    Raises:
        CheckpointError: One can't be read, or they are not of the same make.
    """
    (spec, ours), (_, theirs) = _alike([first, second])
    found = []
    for key in _memory_keys(spec):
        if ours[key].is_floating_point():
            a, b = ours[key].double().flatten(), theirs[key].double().flatten()
            norms = float(a.norm()), float(b.norm())
            cosine = float(a @ b) / (norms[0] * norms[1]) if all(norms) else float(norms[0] == norms[1])
            found.append(Distance(_shown(key), norms, float((a - b).norm()), cosine))
    return found


def mean(
    folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], weights: Sequence[float] | None = None
) -> Path:
    """Write the weighted mean of memories of the same make as a checkpoint.

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
    made = {key: first[key] for key in _memory_keys(spec)}
    for key, tensor in made.items():
        if tensor.is_floating_point():
            total = sum(weight * tensors[key].double() for weight, (_, tensors) in zip(given, read, strict=True))
            made[key] = torch.as_tensor(total).to(tensor.dtype)
    write_files(Path(out), made, dict(spec) | {"what": "memory"})
    return Path(out)


def _alike(folders: Sequence[str | os.PathLike[str]]) -> list[tuple[Spec, dict[str, Tensor]]]:
    """The checkpoints, whose memories have the same tensors.

    Raises:
        CheckpointError: They don't.
    """
    specs = [read_spec(Path(folder)) for folder in folders]
    read = [(spec, read_tensors(Path(folder), spec)) for folder, spec in zip(folders, specs, strict=True)]
    first = _makes(specs[0])
    for folder, other in zip(folders, map(_makes, specs), strict=True):
        if other != first:
            key = min(set(first.items()) ^ set(other.items()))[0]
            ours, theirs = first.get(key, "not there"), other.get(key, "not there")
            raise CheckpointError(
                f"{folders[0]} and {folder} are not of the same make: {_shown(key)} is {ours} in the one and {theirs} "
                "in the other"
            )
    return read


def _makes(spec: Spec) -> dict[str, str]:
    return {key: f"{spec.tensors[key].dtype} {list(spec.tensors[key].shape)}" for key in _memory_keys(spec)}


def _memory_keys(spec: Spec) -> list[str]:
    prefixes = tuple(_prefix(part.path, memory.name) for part in spec.parts for memory in part.memories)
    return [key for key in spec.tensors if key.startswith(prefixes)]


def _prefix(part: str, memory: str) -> str:
    return key_prefix(part, AIM, memory)


def _shown(key: str) -> str:
    return key.replace(f"{AIM}.", "", 1)


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors if t.is_floating_point()))
