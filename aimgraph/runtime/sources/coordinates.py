"""Where each value stands: the coordinates of the memory's grid, as CoordConv gives them to a layer.

Source: Liu et al., "An intriguing failing of convolutional neural networks and the CoordConv solution", 2018.
"""

import math

import torch
from torch import Tensor

from aimgraph.runtime.sources.parameter import ParameterSource
from aimgraph.runtime.specs import PARTS


class CoordinatesSource(ParameterSource):
    """The row and the column of each place, from -1 to 1, and waves of them in any further channels.

    Channel 0 holds the row r and channel 1 the column c. Channels 2, 3, 4, 5 hold sin(pi r), sin(pi c), cos(pi r) and
    cos(pi c), and each four after that the same of twice the frequency. A memory of shape (N,) holds its one
    coordinate, from -1 to 1.

    Args:
        spec: Of the memory; with a shape (rows, cols, channels), of two channels or more.
    """

    def reset_parameters(self) -> None:
        """Set all values to the coordinates."""
        if not self.value.is_meta:
            with torch.no_grad():
                self.value.copy_(coordinates(self.shape).reshape(-1))


def coordinates(shape: tuple[int, ...]) -> Tensor:
    """The values in float32, in `shape`; see `CoordinatesSource`."""
    if len(shape) == 1:
        return _axis(shape[0])
    rows, cols, channels = shape
    places = torch.stack(torch.meshgrid(_axis(rows), _axis(cols), indexing="ij"), dim=-1)
    maps = [places]
    for octave in range(-(-(channels - 2) // 4)):
        angles = places * (math.pi * 2**octave)
        maps += [angles.sin(), angles.cos()]
    return torch.cat(maps, dim=-1)[..., :channels]


def _axis(size: int) -> Tensor:
    """`size` coordinates from -1 to 1; 0 for a single one."""
    places = torch.arange(size, dtype=torch.float32, device="cpu")
    return places * (2 / (size - 1)) - 1 if size > 1 else places


PARTS["source"]["coordinates"] = CoordinatesSource
