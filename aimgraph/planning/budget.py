"""Whether a memory keeps to the parameters that it was allowed."""

from aimgraph.planning.reads import MemoryPlan


def over_budget(memory: MemoryPlan, base_parameters: int) -> str:
    """That the smallest memory there is adds more than its budget; empty if it does not, or has a shape of its own.

    Args:
        memory: The plan of the memory.
        base_parameters: Parameters of the base.
    """
    ratio = memory.parameters / max(1, base_parameters)
    if memory.config.shape != "auto" or ratio <= memory.config.budget:
        return ""
    return (
        f"memory {memory.name!r}: one channel, the least there is, already adds {ratio:.2%} of the base's "
        f"parameters, above the budget of {memory.config.budget:.2%}"
    )
