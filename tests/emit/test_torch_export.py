"""torch.export of a transformed module: the program holds for every size that the base's does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import aimgraph
from tests.nets import randomise


def convolutions() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Sizes(nn.Module):
    """Sizes in arithmetic, a transposed convolution, a function, and linear layers on a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 3, 3, 2), nn.Linear(3, 5)
        self.weight = nn.Parameter(torch.randn(3, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        y = F.conv2d(self.up(F.max_pool2d(self.stem(x), 2))[:, :, :h, :w], self.weight)
        return self.head(y.flatten(2).transpose(1, 2)).reshape(b, h, w, 5)


class OneCall(nn.Module):
    """A part that is kept as one call."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) if x.requires_grad or not x.requires_grad else x


def one_call() -> nn.Module:
    return nn.Sequential(OneCall(), nn.ReLU(), nn.Conv2d(4, 2, 1))


IMAGE = (2, 3, 12, 16)


@pytest.mark.parametrize(
    ("build", "shape", "grid", "options"),
    [
        (convolutions, IMAGE, (2, 3), {}),
        (convolutions, IMAGE, (2, 3), {"read": "resize"}),
        (convolutions, IMAGE, (2, 3), {"lowering": "concat"}),
        (convolutions, IMAGE, (2, 3), {"updates": "stages", "carry": "state"}),
        (Sizes, IMAGE, (2, 3), {}),
        (one_call, IMAGE, (2, 3), {}),
        (lambda: nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3)), (2, 8, 6), (1,), {}),
        (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.Conv1d(4, 2, 1)), (2, 3, 10), (2,), {}),
        (lambda: nn.Sequential(nn.Conv3d(3, 4, 3, padding=1)), (2, 3, 4, 6, 8), (2, 3, 4), {}),
        (lambda: nn.Sequential(nn.Linear(5, 4)), (2, 4, 6, 4, 8, 5), (1, 2, 3, 4), {}),
    ],
    ids=["split", "resize", "concat", "updates", "sizes", "one-call", "tokens", "conv1d", "conv3d", "four-dimensions"],
)
def test_sizes_vary(
    build: Callable[[], nn.Module], shape: tuple[int, ...], grid: tuple[int, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    aim = randomise(aimgraph.transform(build().eval(), x, **options)).eval()
    vary: Any = {0: Dim("b")} | {axis: 2 * Dim(f"half_{axis}", min=2, max=32) for axis in grid}
    for strict in (False, True) if build is convolutions and not options else (False,):
        program = torch.export.export(aim, (x,), dynamic_shapes=(vary,), strict=strict).module()
        for more in (0, 2, 8):
            other = torch.randn([size + more * (axis in grid) + (axis == 0) for axis, size in enumerate(shape)])
            assert torch.equal(program(other), aim(other))


def test_a_size_that_the_base_fixes_is_refused_as_for_the_base() -> None:
    x = torch.randn(2, 3, 4, 4)
    base = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 2)).eval()
    told = []
    for model in (base, aimgraph.transform(base, x).eval()):
        with pytest.raises((RuntimeError, ValueError)) as error:
            torch.export.export(model, (x,), dynamic_shapes=({2: Dim("h", min=4, max=8)},), strict=False)
        told.append(type(error.value))
    assert told[0] is told[1]
