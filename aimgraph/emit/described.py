"""A transformed module in words: the structure of its base, and its memories."""

from collections.abc import Iterator

from torch import nn

from aimgraph.compiler.aim_paths import AIM, DEFAULT
from aimgraph.emit.record import Record


def described(aim: nn.Module) -> str:
    """The base as `print` shows it, then a line for each memory, and one that says how to see the code.

    Args:
        aim: An `AimModule`, or one that is being made, of which nothing is known yet.
    """
    record = vars(aim).get("_record")
    parts = [
        f"({name}): {_indented(repr(part))}" for name, part in vars(aim).get("_modules", {}).items() if name != AIM
    ]
    told = list(_memories(record)) if record else []
    lines = [*filter(None, aim.extra_repr().split("\n")), *parts, *told]
    inside = "".join(f"\n  {line}" for line in lines)
    return f"{type(aim).__name__}({inside}\n)" if inside else f"{type(aim).__name__}()"


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def _memories(record: Record) -> Iterator[str]:
    for memory in record.plan.memories:
        shape = " x ".join(map(str, memory.shape))
        sites = len({read.site for read in memory.reads})
        written = f", written at {len(memory.updates)} places" if memory.updates else ""
        yield f"memory {memory.name!r}: {shape}, read at {sites} layers{written}, +{memory.parameters:,} parameters"
    if record.sets:
        yield f"memory sets: {', '.join((DEFAULT, *record.sets))}; in use: {record.chosen}"
    if not record.enabled:
        yield "the memory is disabled: the base runs alone"
    yield "its forward as code: print(aim.code); its plan: print(aimgraph.plan(aim))"
