"""What of a module goes into a checkpoint, and under which names."""

from typing import Literal

from aimgraph.checkpoint.spec import MemoryEntry, ReadEntry
from aimgraph.planning.reads import MemoryPlan

What = Literal["memory", "all"]


def key_prefix(path: str) -> str:
    """What the state-dict keys of a part begin with."""
    return f"{path}." if path else ""


def memory_entry(memory: MemoryPlan) -> MemoryEntry:
    """A memory's plan as the spec holds it."""
    return MemoryEntry(
        config=memory.config.to_json(),
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
