"""A memory drawn anew, as a transform draws it: for another memory set, or from another start."""

from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.planning.reads import MemoryPlan, Read
from aimgraph.reproducible import own_stream
from aimgraph.runtime.function_read import FunctionRead
from aimgraph.runtime.layers import layer_at
from aimgraph.runtime.memory import Memory
from aimgraph.runtime.parts import redraw
from aimgraph.runtime.read_bounds import READ_BOUND
from aimgraph.runtime.read_layers import read_weight
from aimgraph.runtime.start import Start, zero_memory
from aimgraph.runtime.state import StateCarry


@torch.no_grad()
def draw_memory(aim: nn.Module, memory: MemoryPlan, made: Memory, start: Start) -> None:
    """Give a memory the values and weights of a start; what was carried is forgotten.

    Args:
        aim: The transformed module, for its layers.
        memory: The plan of the memory.
        made: Gets them.
        start: Which factor is zero, and the streams that the other one is drawn from.
    """
    for part in ("source", "views", "updates"):
        with torch.device("cpu"), own_stream(f"{start.stream}/{part}"):
            redraw(made.get_submodule(part))
    for read in memory.reads:
        layer: Any = made.reads.get_submodule(read.name)
        layer.weight.copy_(_read_weight(aim, read, layer, start).to(layer.weight))
    if start.kind == "zero_values":
        zero_memory(made, memory.name)
    for module in made.children():
        if isinstance(module, StateCarry):
            module.reset()


def _read_weight(aim: nn.Module, read: Read, layer: nn.Module, start: Start) -> Tensor:
    if start.kind == "zero_values":
        return drawn_again(read, layer, start, read_scale(aim, read, layer, start))
    if isinstance(layer, FunctionRead):
        return drawn_again(read, layer, start, layer.bounds[start.kind])
    return read_weight(layer_at(aim, read.site), read.channels, start, read.name)


def read_scale(aim: nn.Module, read: Read, layer: nn.Module, start: Start) -> float:
    """The b of the U(-b, b) that ``start="zero_values"`` draws a read weight from.

    Args:
        aim: The transformed module, for its layers.
        read: The plan of the read.
        layer: The read layer.
        start: For its scale.
    """
    if isinstance(layer, FunctionRead):
        return start.scale * layer.bounds["zero_values"]
    return start.scale * READ_BOUND(layer_at(aim, read.site), read.channels)


def drawn_again(read: Read, layer: nn.Module, start: Start, scale: float) -> Tensor:
    """The weight of a read layer from U(-scale, scale), of the stream that its start and its name say; float32."""
    return start.uniform(tuple(layer.get_parameter("weight").shape), scale, f"reads/{read.name}")
