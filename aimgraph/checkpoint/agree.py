"""Whether a checkpoint fits a base and a plan: every difference is an error that names it."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from torch import Tensor

from aimgraph.checkpoint.drawn import base_digest, plan_digest
from aimgraph.checkpoint.entries import key_prefix, lengthened, memory_entry, named
from aimgraph.checkpoint.fingerprint import layers_apart
from aimgraph.checkpoint.spec import DrawnEntry, LayerEntry, MemoryEntry, PartEntry, ReadEntry, Spec
from aimgraph.compiler.aim_paths import AIM, DEFAULT, SETS
from aimgraph.compiler.program import Pass, Program, Stage
from aimgraph.config import AimConfig
from aimgraph.emit.module import AimModule
from aimgraph.emit.record import record_of
from aimgraph.errors import CheckpointError, ConfigError
from aimgraph.planning.reads import MemoryPlan

_SAME = ("source", "read", "block", "updates", "pool", "mode", "carry", "rate", "write_in_eval")
"""Options that a memory's values don't show, and that change what is computed with them."""


def check_base(place: Path, spec: Spec, present: Mapping[str, LayerEntry]) -> None:
    """Refuse a base whose layers are not those that the checkpoint was made with."""
    if spec.base.sha256 is not None:
        _check_digest(place, spec.base.name, spec.base.sha256, base_digest(present))
        return
    lines = layers_apart(spec.base.layers, present)
    if lines:
        told = "\n".join(f"  {line}" for line in lines[:4])
        raise CheckpointError(
            f"{place} was made with another base ({spec.base.name}). The first layers that differ:\n{told}\n"
            "Load it onto the model that was transformed, in the dtype that it had"
        )


def _check_digest(place: Path, name: str, written: str, present: str) -> None:
    if written != present:
        raise CheckpointError(
            f"{place} holds values alone and was made with another base ({name}): its fingerprint (layers, shapes, "
            f"dtypes, samples of their values) has the SHA-256 {written[:16]}..., and that of this one has "
            f"{present[:16]}...: load it onto the model that was transformed, in the dtype and with the weights and "
            "buffers that it had then (batch statistics move while values train, unless aimgraph.freeze_base holds "
            'them); a checkpoint of what="memory" would say which layers differ'
        )


@dataclass(frozen=True)
class PlanCheck:
    """Compares the plan with the spec before anything is made of it."""

    place: Path
    part: PartEntry
    tensors: Mapping[str, Tensor]

    def __call__(self, done: Pass, program: Program) -> None:
        """After planning, compare; before anything is inserted."""
        if program.stage is not Stage.PLANNED:
            return
        for memory, entry in zip(program.plan.memories, self.part.memories, strict=True):
            _check_memory(self.place, entry, memory)
            prefix = key_prefix(self.part.path, AIM, memory.name)
            self._check_size(f"{prefix}source.", memory.source_parameters)
            for read in memory.reads if entry.drawn is None else ():
                self._check_size(f"{prefix}reads.{read.name}.weight", read.parameters)
            for index, update in enumerate(memory.updates):
                self._check_size(f"{prefix}updates.{index}.", update.parameters)
            for one in self.part.sets:
                own = memory.source_parameters if one.shares_reads else memory.parameters
                self._check_size(key_prefix(self.part.path, SETS, one.name, memory.name), own)

    def _check_size(self, prefix: str, needed: int) -> None:
        """Refuse to make what the file has no values for."""
        given = sum(tensor.numel() for key, tensor in self.tensors.items() if key.startswith(prefix))
        if given < needed:
            raise CheckpointError(f"{self.place}: {prefix} needs {needed:,} values, and the file holds {given:,}")


def _check_memory(place: Path, entry: MemoryEntry, memory: MemoryPlan) -> None:
    present = memory_entry(memory, entry.config)
    if present.shape != entry.shape:
        raise CheckpointError(
            f"{place}: memory {entry.name!r} has the shape {entry.shape}, and here it is {present.shape}"
        )
    was = f"{place}: memory {entry.name!r} was"
    if present.updates != entry.updates:
        raise CheckpointError(f"{was} written by {list(entry.updates)}, and here it is by {list(present.updates)}")
    if entry.drawn is not None:
        _check_drawn(was, entry.drawn, present.reads)
        return
    for ours, theirs in zip(present.reads, entry.reads, strict=False):
        if ours != theirs:
            raise CheckpointError(
                f"{was} read at {theirs.name} with {theirs.channels} channels on {_grids(theirs)} in {theirs.lowering} "
                f"form, and here at {ours.name} with {ours.channels} on {_grids(ours)} in {ours.lowering} form"
            )
    if len(present.reads) != len(entry.reads):
        raise CheckpointError(f"{was} read {len(entry.reads)} times, and here it is {len(present.reads)} times")


def _check_drawn(was: str, drawn: DrawnEntry, present: tuple[ReadEntry, ...]) -> None:
    """Whether reads that are drawn again have the layers, channels and grids of those of a file."""
    here, there = list(dict.fromkeys(read.site for read in present)), list(lengthened(drawn.sites))
    for ours, theirs in zip_longest(here, there, fillvalue="no layer"):
        if ours != theirs:
            raise CheckpointError(f"{was} read at {theirs:.200}, and here it is at {ours} in that place")
    if plan_digest(present) != drawn.plan:
        raise CheckpointError(f"{was} read with other channels, on other grids or in another form than here")


def _grids(read: ReadEntry) -> str:
    return ", ".join(f"{list(grid)} (value {value})" for grid, value in zip(read.grids, read.values, strict=False))


def check_same(place: Path, entry: PartEntry, part: AimModule) -> None:
    """Whether the memories of a part are of the same make as those of a spec."""
    here = {memory.name: memory for memory in record_of(part).plan.memories}
    if list(here) != [memory.name for memory in entry.memories]:
        raise CheckpointError(
            f"{place}: its memories are {[memory.name for memory in entry.memories]}, and those of "
            f"{entry.path or 'this model'} are {list(here)}"
        )
    for memory in entry.memories:
        try:
            theirs = AimConfig.from_json(memory.config)
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{place}: a memory's options are invalid: {error}") from error
        ours = named(here[memory.name].config)
        for option in _SAME:
            if getattr(theirs, option) != getattr(ours, option):
                raise CheckpointError(
                    f"{place}: memory {memory.name!r} has {option}={getattr(theirs, option)!r}, and here it has "
                    f"{option}={getattr(ours, option)!r}: load onto the base with aimgraph.load instead"
                )
        _check_memory(place, memory, here[memory.name])


def check_sets(place: Path, entry: PartEntry, part: AimModule, name: str | None) -> None:
    """Refuse a checkpoint of several memory sets where they are not those of the part, or one name is asked for."""
    theirs = {one.name: one.shares_reads for one in entry.sets}
    if name is not None:
        raise CheckpointError(
            f"{place}: it holds the memory sets {[DEFAULT, *theirs]}, and only one can be put into {name!r}: save one "
            "with aimgraph.save(aim, folder, memory_set=...)"
        )
    if theirs != record_of(part).sets:
        raise CheckpointError(
            f"{place}: it holds the memory sets {_sets(theirs)}, and {entry.path or 'this model'} has "
            f"{_sets(record_of(part).sets)}"
        )


def _sets(sets: Mapping[str, bool]) -> str:
    return ", ".join([DEFAULT, *(f"{name} (values only)" if shared else name for name, shared in sets.items())])


def check_tensors(place: Path, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], free: set[str]) -> None:
    """Refuse other keys, shapes and, but for the keys that are `free` in it, dtypes than the model's."""
    if set(given) != set(wanted):
        key = min(set(given) ^ set(wanted))
        raise CheckpointError(f"{place}: {key!r:.200} is {'only in it' if key in given else 'not in it'}")
    for key, tensor in given.items():
        here = wanted[key]
        if tensor.shape != here.shape:
            raise CheckpointError(f"{place}: {key} is {list(tensor.shape)}, and here it is {list(here.shape)}")
        if tensor.dtype != here.dtype and key not in free:
            raise CheckpointError(
                f"{place}: {key} is {tensor.dtype}, and here it is {here.dtype}: convert this model first (`to`)"
            )
