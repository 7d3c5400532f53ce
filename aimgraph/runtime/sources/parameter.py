"""N free values, drawn as noise upon a smooth field.

    m = deviation * (sqrt(s) * noise + sqrt(1 - s) * field),   s = 1/2

Both have a deviation of 1. Noise tells every place from every other one; a smooth field says where a place is, which
layers learn from sooner. docs/adr/0033-which-factor-starts-at-zero.md has the measurements.
"""

import math

import torch
from torch import Tensor, nn

from aimgraph.reproducible import uniform
from aimgraph.runtime.specs import PARTS, SourceSpec
from aimgraph.torch_private import is_jit_tracing

FREQUENCIES = 4
"""Of the waves, in half periods across the memory: 1, 2, 3, 4, for two channels each, and again."""

NOISE = 0.5
"""s, the share of the noise in the variance."""


class ParameterSource(nn.Module):
    """N free values; see `drawn_values`.

    Args:
        spec: Of the memory.
    """

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__()
        self.shape, self.deviation = spec.shape, spec.deviation
        self.value = nn.Parameter(torch.empty(spec.size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all values anew; on the CPU, where they are the same on every machine."""
        if not self.value.is_meta:
            with torch.no_grad():
                self.value.copy_(self.deviation * drawn_values(self.shape).reshape(-1))

    def zero_(self) -> None:
        """Make all values zero."""
        with torch.no_grad():
            self.value.zero_()

    def forward(self) -> Tensor:
        """The values, [1, N]."""
        plain = torch.is_grad_enabled() or is_jit_tracing()  # a trace is looked at in both grad modes
        value = self.value if plain else self.value.detach()  # a view of it would require gradients
        return value.unsqueeze(0)


def drawn_values(shape: tuple[int, ...]) -> Tensor:
    """Noise and a smooth field, together of deviation 1, in float32 on the CPU.

    The field of a channel is a wave, ``sin(pi / 2 * f * (cos(t) r + sin(t) c) + p)`` over rows r and columns c from
    -1 to 1, with p from U(-pi / 4, pi / 4). Two channels have one frequency f, and directions t that are drawn, and at
    right angles. In a memory of one row or column, whose direction is given, p is 0 and pi / 2. A memory of one place
    has noise alone.

    Args:
        shape: Of the memory, (rows, cols, channels), or (N,) for one row.
    """
    noise = uniform(shape, math.sqrt(3))
    rows, cols, channels = shape if len(shape) == 3 else (1, shape[0], 1)
    if rows * cols == 1:
        return noise
    field = _waves(rows, cols, channels)
    deviation, mean = torch.std_mean(field, (1, 2), correction=0, keepdim=True)
    field = (field - mean) / deviation.clamp_min(1e-6)
    mixed: Tensor = math.sqrt(NOISE) * noise + math.sqrt(1 - NOISE) * field.movedim(0, -1).reshape(shape)
    return mixed


def _waves(rows: int, cols: int, channels: int) -> Tensor:
    """One a channel, [channels, rows, cols]; computed in float64, so that rounding hides how a processor does it."""
    number = torch.arange(channels, dtype=torch.int64, device="cpu")
    pair, right_angle = number // 2, number % 2 * (math.pi / 2)
    turns, phases = uniform((int(pair[-1]) + 1,), math.pi)[pair].double(), uniform((channels,), math.pi / 4).double()
    if min(rows, cols) == 1:
        turns, phases = torch.full_like(turns, 0 if cols == 1 else math.pi / 2), right_angle
    else:
        turns = turns + right_angle
    along = turns.cos()[:, None, None] * axis(rows)[:, None] + turns.sin()[:, None, None] * axis(cols)
    half_periods = (1 + pair % FREQUENCIES)[:, None, None]
    return (math.pi / 2 * half_periods * along + phases[:, None, None]).sin().float()


def axis(size: int) -> Tensor:
    """`size` coordinates from -1 to 1; 0 for a single one."""
    places = torch.arange(size, dtype=torch.float32, device="cpu")
    return places * (2 / (size - 1)) - 1 if size > 1 else places


PARTS["source"]["parameter"] = ParameterSource
