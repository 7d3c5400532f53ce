"""Layers whose forward calls their function with a part of their weight, or with one that is made of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from tests.nets import randomise


class Slim(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return F.conv2d(x, self.weight[:5, : x.size(1)], self.bias[:5], self.stride, self.padding)


class SlimInputs(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, : x.size(1)], self.bias, self.stride, self.padding)


class SlimDepthwise(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[: x.size(1)], None, self.stride, self.padding, 1, x.size(1))


class SmallKernel(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, 1:2, 1:2], self.bias)


class SlimTransposed(nn.ConvTranspose2d):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.conv_transpose2d(x, self.weight[: x.size(1), :5], None)


class Listed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight[[0, 2, 4, 1, 3]])


class Viewed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.view(3, 16)[:, : x.shape[-1]])


class Transposed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t())


class ByMode(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        size = 6 if self.training else 5
        return F.linear(x, self.weight[:size])


class Inside(nn.Module):
    """Is kept as one call."""

    def __init__(self) -> None:
        super().__init__()
        self.slim = Slim(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.slim(x)
        return y * 2 if y.sum() > 1e9 else y


class Masked(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * (self.weight > 0), self.bias)


class Cast(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Tied(nn.Module):
    """[B, 8] -> [B, 8] by one weight and its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.layer(x), self.layer.weight.t())


IMAGE, VECTOR = torch.linspace(-1, 1, 384).sin().reshape(2, 3, 8, 8), torch.linspace(-1, 1, 16).reshape(2, 8)
NETS: dict[str, tuple[Callable[[], nn.Module], Tensor, list[str]]] = {
    "slice of both": (lambda: nn.Sequential(Slim(3, 8, 3), nn.Conv2d(5, 2, 1)), IMAGE, ["0.conv2d_0", "1"]),
    "slice of inputs": (lambda: nn.Sequential(SlimInputs(5, 8, 3), nn.Conv2d(8, 2, 1)), IMAGE, ["0", "1"]),
    "slice of groups": (lambda: nn.Sequential(SlimDepthwise(5, 5, 3, groups=5)), IMAGE, ["0.conv2d_0"]),
    "slice of a kernel": (lambda: nn.Sequential(SmallKernel(3, 8, 3)), IMAGE, ["0.conv2d_0"]),
    "slice, transposed convolution": (
        lambda: nn.Sequential(SlimTransposed(4, 8, 3)),
        IMAGE,
        ["0.conv_transpose2d_0"],
    ),
    "list of rows": (lambda: nn.Sequential(Listed(8, 6), nn.Linear(5, 2)), VECTOR, ["0.linear_0", "1"]),
    "view": (lambda: nn.Sequential(Viewed(8, 6)), VECTOR, ["0.linear_0"]),
    "transpose": (lambda: nn.Sequential(Transposed(6, 8)), VECTOR, ["0.linear_0"]),
    "slice by mode": (lambda: nn.Sequential(ByMode(8, 6)), VECTOR, ["0.linear_0", "0.linear_0_1"]),
    "inside one call": (lambda: nn.Sequential(Inside(), nn.Conv2d(5, 2, 1)), IMAGE, ["0.slim.conv2d_0", "1"]),
    "mask": (lambda: nn.Sequential(Masked(8, 6)), VECTOR, ["0"]),
    "cast": (lambda: nn.Sequential(Cast(8, 6)), VECTOR, ["0"]),
    "standardised": (lambda: nn.Sequential(Standardised(3, 4, 3)), IMAGE, ["0"]),
    "tied": (Tied, VECTOR, ["layer", "linear_0"]),
}


@pytest.mark.parametrize("name", list(NETS))
def test_what_is_called_with_another_weight_reads(name: str) -> None:
    build, x, sites = NETS[name]
    torch.manual_seed(0)
    base = build()
    aim = aimgraph.transform(base, x)
    plan = aimgraph.plan(aim)
    assert [site.path for site in plan.sites] == sites
    left = {item.path for item in plan.skipped}
    entered = {path.rpartition(".")[0] for path in sites if "_" in path and "." in path}
    assert left == entered
    assert all("entered, what it calls is a site of its own" in item.reason for item in plan.skipped)
    for train in (True, False):
        assert torch.equal(aim.train(train)(x), base.train(train)(x))
    assert aimgraph.verify(base, randomise(aim), x), aimgraph.verify(base, aim, x)
    aim.train()(x).square().sum().backward()
    reads = {key: weight.grad for key, weight in aim.named_parameters() if ".reads." in key and "_0_1" not in key}
    assert all(grad is not None and bool(grad.any()) for grad in reads.values())
    assert torch.allclose(aimgraph.fold(aim)(x), aim.eval()(x), atol=1e-5)


def test_a_slice_names_the_weight() -> None:
    (item,) = aimgraph.plan(NETS["slice of both"][0](), IMAGE).skipped
    assert item.reason.startswith("its own forward calls conv2d with a weight [5, 3, 3, 3], which is none of its own")
