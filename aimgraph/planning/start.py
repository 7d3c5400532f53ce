"""The start of a memory: its scale, for what draws it and in words."""

from collections.abc import Iterable

from aimgraph.config import AimConfig
from aimgraph.planning.reads import MemoryPlan, Read
from aimgraph.runtime.start import Start

SCALES = {"zero_reads": 1.0, "zero_values": 1.0, "drawn": 0.02}
"""Start -> its scale where none is asked for; with ``zero_reads`` the largest one."""

REACH = 120.0
"""The most that a first step of rate 1 should move the outputs of all sites, added up; see `scale_of`."""


def scale_of(config: AimConfig, reads: Iterable[Read]) -> float:
    """The scale of a start: the one asked for, or the default.

    Adam's first step moves every parameter by about its rate, whatever the size of the gradient. Where read weights
    are zero, a site that sees n numbers of the memory is moved by about ``rate * n * scale``, and the network by the
    sum over its sites. The default keeps that below ``rate * REACH`` for each memory: ``min(1, REACH / sum of n)``,
    over all calls in the graph that has more of them, that of train or that of eval mode. Sources that draw nothing
    have a scale of their own.

    Args:
        config: Of the memory.
        reads: What reads it.
    """
    if config.start_scale is not None:
        return config.start_scale
    largest = SCALES[config.start]
    if config.start != "zero_reads":
        return largest
    calls = [(call.graph, read.inputs) for read in reads for call in read.calls]
    seen = max(sum(inputs for graph, inputs in calls if graph in ("both", mode)) for mode in ("train", "eval"))
    return min(largest, REACH / max(1, seen))


def start_of(memory: MemoryPlan, memory_set: str = "") -> Start:
    """The start of a memory, or of the one that another memory set has."""
    config = memory.config
    start = Start(config.start, memory.scale, f"{config.seed}/{config.name}")
    return start.within(f"set {memory_set}") if memory_set else start


def start_text(memory: MemoryPlan) -> str:
    """Which factor is zero and how the other one is drawn, in a line."""
    config, scale = memory.config, memory.scale
    values = {"coordinates": "values are coordinates", "ones_conv": "values drawn by a layer fed with ones"}
    given = "values are given" if config.source == "given" else f"values by the source {config.source!r:.60}"
    drawn = f"values drawn with a standard deviation of {scale:.3g}"
    held = drawn if config.source == "parameter" else values.get(str(config.source), given)
    held += "" if config.trainable else " and fixed"
    return {
        "zero_reads": f"start zero_reads: read weights are zero, {held}",
        "zero_values": f"start zero_values: values are zero, read weights drawn at {scale:.3g} x their formula",
        "drawn": f"start drawn: read weights drawn as by their layers, {held}",
    }[config.start]
