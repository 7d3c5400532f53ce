"""A plan in a few lines: the model, its memories, what they add, and what the result computes at the start."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aimgraph.planning.budget import over_budget
from aimgraph.planning.reads import MemoryPlan

_EQUAL = ("zero_reads", "zero_values")
"""The starts with which the result computes what the base computes."""


def summary(memories: Sequence[MemoryPlan], totals: Mapping[str, Any]) -> Iterator[str]:
    """The lines that a plan begins with: four of them for one memory, one more for each further one.

    Args:
        memories: Of a plan.
        totals: As `Plan.totals` gives them, with ``model`` and ``inputs``.
    """
    inputs = ", ".join("x".join(map(str, shape)) or "a number" for shape in totals["inputs"])
    yield f"{totals['model']}: {totals['base_parameters']:,} parameters, inputs {inputs}"
    for memory in memories:
        yield f"memory {memory.name!r}: {_shape(memory)}, read at {_sites(memory, totals['layers_called'])}"
    of = _of(memories, totals["base_parameters"])
    yield f"added: {totals['added_parameters']:,} parameters, {totals['added_ratio']:.2%} of the model's{of}"
    if memories:
        yield f"at the start: {_identity(memories)}"


def _shape(memory: MemoryPlan) -> str:
    return f"{' x '.join(map(str, memory.shape))}{f' = {memory.size:,}' if len(memory.shape) > 1 else ''} values"


def _sites(memory: MemoryPlan, called: int) -> str:
    sites = len({read.site for read in memory.reads})
    return f"{sites:,} of {called:,} layers"


def _of(memories: Sequence[MemoryPlan], base_parameters: int) -> str:
    """What the budgets are, where shapes follow from them, and whether they were kept to."""
    solved = [memory for memory in memories if memory.config.shape == "auto"]
    budgets = " and ".join(dict.fromkeys(f"{memory.config.budget:.2%}" for memory in solved))
    if not budgets:
        return " (the shape is given)" if memories else ""
    over = any(over_budget(memory, base_parameters) for memory in solved)
    return f", above the budget of {budgets}" if over else f" (budget {budgets})"


def _identity(memories: Sequence[MemoryPlan]) -> str:
    drawn = [memory.name for memory in memories if memory.config.start not in _EQUAL]
    if not drawn:
        return "computes what the model computes, bit for bit"
    return f"computes something else than the model, as start={'drawn'!r} asks for ({', '.join(drawn)})"
