"""Recipes of random networks: only data, so that the repr of a failing example builds the same network again.

A recipe lists steps; a step takes one or two of the values so far and gives one more.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

FUNCTIONS = (
    *(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    F.linear,
)
GRIDS = {"seq": 1, "map": 2, "vol": 3}


@dataclass(frozen=True)
class Step:
    """One operation: its name, which values it takes, and numbers that each operation reads its own way."""

    op: str
    a: int = 0
    b: int = 0
    width: int = 4
    kernel: int = 3
    stride: int = 1
    flag: int = 0
    inline: bool = False


@dataclass(frozen=True)
class Recipe:
    """A network, its inputs, and how it is called.

    Attributes:
        inputs: Kind and size of each input.
        places: Where each input after the first goes.
        batch: Batch size of the example.
        output: How the outputs are nested.
    """

    inputs: tuple[tuple[str, int], ...]
    places: tuple[str, ...]
    steps: tuple[Step, ...]
    batch: int = 2
    output: str = "tensor"
    seed: int = 0


def channels(kind: str, x: Tensor) -> int:
    return x.shape[1] if kind in GRIDS else x.shape[-1]


def layer_for(kind: str, inputs: int, outputs: int, step: Step) -> nn.Module:
    """A layer that keeps the grid."""
    bias = step.flag % 2 == 0
    if kind not in GRIDS:
        return nn.Linear(inputs, outputs, bias=bias)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[GRIDS[kind] - 1]
    return conv(inputs, outputs, 3, padding=1, bias=bias) if step.kernel > 1 else conv(inputs, outputs, 1, bias=bias)


class Op(nn.Module):
    """One step's modules and parameters, and what it does.

    Attributes:
        takes: Kinds of the first value that it works on.
        second: Kinds of the second value; empty for none, "same" for the first one's.
        unread: Paths below it that can't read, by design.
        batch_norm: Whether samples see each other.
        pickles: Whether its modules can be pickled.
    """

    takes: ClassVar[tuple[str, ...]] = ("vec", "tok", "seq", "map", "vol")
    second: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[str] = ""
    unread: tuple[str, ...] = ()
    batch_norm: ClassVar[bool] = False
    pickles: bool = True

    def __init__(self, step: Step, kind: str, x: Tensor, y: Tensor | None, kind_y: str, net: nn.Module) -> None:
        super().__init__()
        self.step, self.kind, self.kind_y = step, kind, kind_y
        self.flag = step.flag
        self.make(channels(kind, x), x, y, net)

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        """Build modules and parameters."""

    def kind_given(self) -> str:
        return self.gives or self.kind
