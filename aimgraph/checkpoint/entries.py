"""What of a module goes into a checkpoint, and under which names."""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import Any, Literal

from aimgraph.checkpoint.spec import MemoryEntry, ReadEntry
from aimgraph.config import AimConfig
from aimgraph.planning.reads import MemoryPlan
from aimgraph.runtime.parts import name_of
from aimgraph.runtime.specs import PARTS

What = Literal["values", "memory", "trainable", "all"]


def key_prefix(*path: str) -> str:
    """What the state-dict keys of a part begin with, or of something in it: ``key_prefix(part, AIM, memory)``."""
    return "".join(f"{name}." for name in path if name)


def shortened(names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Names, each as how many characters it has in common with the one before, at most 999, and the rest."""
    before = ""
    for name in names:
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(before[:999], name, strict=False))))
        yield shared, name[shared:]
        before = name


def lengthened(short: Iterable[tuple[int, str]]) -> Iterator[str]:
    """The names that `shortened` made short."""
    name = ""
    for shared, rest in short:
        name = name[:shared] + rest
        yield name


def named(config: AimConfig) -> AimConfig:
    """The config with the names of registered factories in their place."""
    return config.model_copy(update={role: name_of(role, getattr(config, role)) for role in PARTS})


def memory_entry(memory: MemoryPlan, config: dict[str, Any]) -> MemoryEntry:
    """A memory's plan as the spec holds it, with the options that it was asked for with."""
    return MemoryEntry(
        config=config,
        shape=memory.shape,
        reads=tuple(
            ReadEntry(
                site=read.site,
                name=read.name,
                channels=read.channels,
                lowering="concat" if read.lowering == "concat" else "split",
                grids=tuple(tuple(call.spec.grid) for call in read.calls),
                values=tuple(call.value for call in read.calls),
            )
            for read in memory.reads
        ),
        updates=tuple(update.spot.where for update in memory.updates),
    )
