"""Small networks in which channels meet in one way each."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Net(nn.Module):
    """Modules by name, and a forward that is given."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def conv(into: int, out: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, size, padding=size // 2, **options)


def param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def attention(net: Any, x: Tensor) -> Tensor:
    b, n, c = x.shape
    q, k, v = net.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1)).softmax(-1)
    return net.out((weights @ v).transpose(1, 2).reshape(b, n, -1)).mean(1)


def values_only(net: Any, x: Tensor) -> Tensor:
    weights = (net.q(x) @ net.k(x).transpose(-2, -1)).softmax(-1)
    return net.out(weights @ net.v(x)).mean(1)


def shuffled(net: Any, x: Tensor) -> Tensor:
    x = net.first(x)
    b, c, h, w = x.shape
    x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
    return net.last(pooled(net.depthwise(x)))


def gated(net: Any, x: Tensor) -> Tensor:
    x = net.first(x)
    gate = net.up(net.down(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
    return net.last(pooled(x * gate))


def dense(net: Any, x: Tensor) -> Tensor:
    for layer in (net.one, net.two):
        x = torch.cat([x, layer(x).relu()], 1)
    return net.last(pooled(x))


def twice(net: Any, x: Tensor) -> Tensor:
    x = net.first(x)
    for _ in range(2):
        x = x + net.shared(x).tanh()
    return net.last(pooled(x))


def mixed(net: Any, x: Tensor) -> Tensor:
    x = net.embed(x).flatten(2)  # B, C, N
    x = x + net.tokens_out(net.tokens(x).relu())
    x = x.transpose(1, 2)
    return net.last(x + net.out(net.hidden(x).relu())).mean(1)


def tokens(net: Any, x: Tensor) -> Tensor:
    x = net.embed(x).flatten(2).transpose(1, 2)
    x = torch.cat([net.cls.expand(len(x), -1, -1), x], 1) + net.positions
    return net.last(net.scale * x)[:, 0]


def written(net: Any, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 8, *x.shape[2:], dtype=x.dtype)
    out[:, :4] = net.first(x)
    out[:, 4:] = net.second(x)
    return net.last(pooled(out))


def sequence(net: Any, x: Tensor) -> Tensor:
    return net.last(net.first(x).relu())


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "chain": (
        lambda: nn.Sequential(
            *(conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=True), conv(6, 5), nn.PReLU(5)),
            *(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5 * 16, 7), nn.Dropout(0.0), nn.Linear(7, 3)),
        ),
        (3, 8, 8),
        3,
    ),
    "residual": (
        lambda: Net(
            lambda net, x: net.last(pooled(F.relu(net.norm(net.second(net.first(x).relu())) + net.skip(x)))),
            **{"first": conv(3, 4), "second": conv(4, 6), "norm": nn.BatchNorm2d(6)},
            **{"skip": conv(3, 6, 1), "last": nn.Linear(6, 2)},
        ),
        (3, 8, 8),
        2,
    ),
    "depthwise": (
        lambda: nn.Sequential(
            *(conv(3, 4, 1), conv(4, 4, groups=4), nn.BatchNorm2d(4), nn.ReLU6(), conv(4, 8, groups=4)),
            *(nn.Hardswish(), conv(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)),
        ),
        (3, 8, 8),
        2,
    ),
    "groups": (
        lambda: nn.Sequential(
            *(conv(3, 8, 1), nn.ReLU(), conv(8, 12, groups=4), nn.SiLU(), conv(12, 6, groups=2), nn.GELU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)),
        ),
        (3, 8, 8),
        3,
    ),
    "dense": (
        lambda: Net(dense, one=conv(3, 4), two=conv(7, 4), last=nn.Linear(11, 2)),
        (3, 8, 8),
        2,
    ),
    "gate": (
        lambda: Net(gated, first=conv(3, 6), down=conv(6, 3, 1), up=conv(3, 6, 1), last=nn.Linear(6, 2)),
        (3, 8, 8),
        2,
    ),
    "chunks": (
        lambda: Net(
            lambda net, x: net.last(pooled(torch.cat([*net.first(x).chunk(2, 1)][::-1], 1))),
            first=conv(3, 8),
            last=nn.Linear(8, 2),
        ),
        (3, 8, 8),
        1,
    ),
    "glu": (
        lambda: Net(lambda net, x: net.last(pooled(F.glu(net.first(x), 1))), first=conv(3, 8), last=nn.Linear(4, 2)),
        (3, 8, 8),
        1,
    ),
    "shuffle": (
        lambda: Net(shuffled, first=conv(3, 8), depthwise=conv(8, 8, groups=8), last=nn.Linear(8, 2)),
        (3, 8, 8),
        1,
    ),
    "shared": (lambda: Net(twice, first=conv(3, 4), shared=conv(4, 4), last=nn.Linear(4, 2)), (3, 8, 8), 1),
    "pixels": (
        lambda: Net(
            lambda net, x: net.last(F.pixel_shuffle(net.first(x), 2)).mean((2, 3)), first=conv(3, 8), last=conv(2, 2)
        ),
        (3, 8, 8),
        1,
    ),
    "upsampled": (
        lambda: Net(
            lambda net, x: net.last(
                torch.cat([x, F.interpolate(net.up(net.first(x)), scale_factor=2.0, mode="bilinear")], 1)
            ).mean((2, 3)),
            first=conv(3, 4, stride=2),
            up=conv(4, 5),
            last=conv(8, 2),
        ),
        (3, 8, 8),
        2,
    ),
    "transposed": (
        lambda: nn.Sequential(
            *(conv(3, 4), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, stride=2), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.ConvTranspose2d(6, 4, 2, groups=2), nn.ReLU(), conv(4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        ),
        (3, 4, 4),
        3,
    ),
    "one dimension": (
        lambda: nn.Sequential(
            *(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True), nn.ReLU(), nn.Conv1d(4, 6, 3), nn.MaxPool1d(2)),
            *(nn.Flatten(), nn.Linear(36, 2)),
        ),
        (2, 16),
        2,
    ),
    "three dimensions": (
        lambda: nn.Sequential(
            *(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ELU(), nn.Conv3d(4, 3, 1), nn.AdaptiveAvgPool3d(1)),
            *(nn.Flatten(), nn.Linear(3, 2)),
        ),
        (1, 6, 6, 6),
        2,
    ),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)),
        (4, 5),
        2,
    ),
    "group norm": (
        lambda: nn.Sequential(
            conv(3, 8),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            conv(8, 4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 2),
        ),
        (3, 8, 8),
        2,
    ),
    "mean over channels": (
        lambda: Net(
            lambda net, x: net.last(pooled((y := net.first(x)) * y.mean(1, keepdim=True).sigmoid())),
            first=conv(3, 4),
            last=nn.Linear(4, 2),
        ),
        (3, 8, 8),
        1,
    ),
    "largest channel": (
        lambda: Net(
            lambda net, x: net.last(pooled((y := net.first(x)) * y.amax(1, keepdim=True).sigmoid())),
            first=conv(3, 4),
            last=nn.Linear(4, 2),
        ),
        (3, 8, 8),
        1,
    ),
    "values of attention": (
        lambda: Net(values_only, q=nn.Linear(6, 4), k=nn.Linear(6, 4), v=nn.Linear(6, 4), out=nn.Linear(4, 2)),
        (5, 6),
        1,
    ),
    "mixer": (
        lambda: Net(
            mixed,
            embed=conv(3, 6, 1),
            **{"tokens": nn.Linear(16, 8), "tokens_out": nn.Linear(8, 16)},
            **{"hidden": nn.Linear(6, 12), "out": nn.Linear(12, 6), "last": nn.Linear(6, 2)},
        ),
        (3, 4, 4),
        3,
    ),
    "tokens": (
        lambda: Net(
            tokens,
            embed=conv(3, 6, 1),
            cls=param(1, 1, 6),
            positions=param(1, 17, 6),
            scale=param(6),
            last=nn.Linear(6, 2),
        ),
        (3, 4, 4),
        1,
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)), nn.ReLU(), nn.Linear(6, 2)),
        (4,),
        1,
    ),
    "sequence": (lambda: Net(sequence, first=nn.Linear(5, 7), last=nn.Linear(7, 2)), (3, 4, 5), 1),
}
"""Name -> what makes a network, the shape of one sample, and how many of its groups can grow."""

HELD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "softmax": (
        lambda: Net(lambda net, x: net.last(net.first(x).softmax(-1)), first=nn.Linear(4, 6), last=nn.Linear(6, 2)),
        (4,),
        "_softmax goes over them",
    ),
    "queries": (lambda: Net(attention, qkv=nn.Linear(6, 18), out=nn.Linear(6, 2)), (5, 6), "sums over the products"),
    "sum over channels": (
        lambda: Net(
            lambda net, x: net.last(pooled((y := net.first(x)) * y.sum(1, keepdim=True).sigmoid())),
            first=conv(3, 4),
            last=nn.Linear(4, 2),
        ),
        (3, 8, 8),
        "sum goes over them",
    ),
    "response norm": (
        lambda: nn.Sequential(conv(3, 4), nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(256, 2)),
        (3, 8, 8),
        "goes over them",
    ),
    "weight norm": (
        lambda: nn.Sequential(*(nn.utils.parametrizations.weight_norm(nn.Linear(*size)) for size in ((4, 6), (6, 2)))),
        (4,),
        "reads them with weights that are computed",
    ),
    "number in the code": (
        lambda: Net(
            lambda net, x: net.last(net.first(x).view(len(x), 4, 64).flatten(1)),
            first=conv(3, 4),
            last=nn.Linear(256, 2),
        ),
        (3, 8, 8),
        "can't take more of them",
    ),
    "number in a reshape": (
        lambda: Net(
            lambda net, x: net.last(net.first(x).reshape(len(x), 4, 64).flatten(1)),
            first=conv(3, 4),
            last=nn.Linear(256, 2),
        ),
        (3, 8, 8),
        "can't take more of them",
    ),
    "number in python": (
        lambda: Net(_looks_itself, first=conv(3, 4), last=nn.Linear(4, 2)),
        (3, 8, 8),
        "the forward fails: four channels, please",
    ),
    "written in part": (
        lambda: Net(written, first=conv(3, 4), second=conv(3, 4), last=nn.Linear(8, 2)),
        (3, 8, 8),
        "copy_ combines them with numbers that can't grow",
    ),
    "cut at a number": (
        lambda: Net(
            lambda net, x: net.last(pooled(torch.cat([(y := net.first(x))[:, 3:], y[:, :3]], 1))),
            first=conv(3, 8),
            last=nn.Linear(8, 2),
        ),
        (3, 8, 8),
        "",
    ),
    "one of them": (
        lambda: Net(lambda net, x: net.last(net.first(x)[:, 1].flatten(1)), first=conv(3, 4), last=nn.Linear(64, 2)),
        (3, 8, 8),
        "takes one of them out",
    ),
    "products of features": (
        lambda: Net(
            lambda net, x: net.last(torch.einsum("bc,bd->bcd", net.first(x), net.second(x)).flatten(1)),
            **{"first": nn.Linear(4, 3), "second": nn.Linear(4, 5), "last": nn.Linear(15, 2)},
        ),
        (4,),
        "several axes",
    ),
    "recurrent": (
        lambda: Net(
            lambda net, x: net.last(net.run_over(net.first(x))[0][:, -1]),
            **{"first": nn.Linear(4, 5), "run_over": nn.GRU(5, 6, batch_first=True), "last": nn.Linear(6, 2)},
        ),
        (3, 4),
        "",
    ),
}
"""Name -> a network in which no group can grow, the shape of one sample, and part of the reason."""


def _looks_itself(net: Any, x: Tensor) -> Tensor:
    x = net.first(x)
    if x.shape[1] != 4:
        raise ValueError("four channels, please")
    return net.last(pooled(x))  # type: ignore[no-any-return]
