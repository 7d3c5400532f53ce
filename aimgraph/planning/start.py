"""The start that a config asks for, for what draws it and in words."""

from aimgraph.config import AimConfig
from aimgraph.runtime.start import Start


def start_of(config: AimConfig, memory_set: str = "") -> Start:
    """The start of a memory, or of the one that another memory set has."""
    start = Start(config.start, config.scale, f"{config.seed}/{config.name}")
    return start.within(f"set {memory_set}") if memory_set else start


def start_text(config: AimConfig) -> str:
    """Which factor is zero and how the other one is drawn, in a line."""
    values = {"coordinates": "values are coordinates", "ones_conv": "values drawn by a layer fed with ones"}
    given = "values are given" if config.source == "given" else f"values by the source {config.source!r:.60}"
    drawn = f"values drawn with a standard deviation of {config.scale:g}"
    held = drawn if config.source == "parameter" else values.get(str(config.source), given)
    held += "" if config.trainable else " and fixed"
    return {
        "zero_reads": f"start zero_reads: read weights are zero, {held}",
        "zero_values": f"start zero_values: values are zero, read weights drawn at {config.scale:g} x their formula",
        "drawn": f"start drawn: read weights drawn as by their layers, {held}",
    }[config.start]
