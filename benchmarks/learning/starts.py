"""How a memory starts: which factor of its reads is zero, and how large the other is."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

import aimgraph

VALUES, READS, UPDATES = "aim.memory.source.value", "aim.memory.reads", "aim.memory.updates"


@dataclass(frozen=True)
class Start:
    """One start.

    Attributes:
        kind: ``"zero_reads"``: read weights 0, values from N(0, scale^2). ``"zero_values"``: values 0, read weights
            from U(-b, b) with `b = scale / sqrt(inputs of the widened weight)`, as the layer draws its own.
            ``"zero_values, own inputs"``: the same with `b = scale * sqrt(3 / inputs of the read weight)`.
            ``"zero_values, base"``: the same, as large as the base's weight in the root mean square, times `scale`.
            ``"drawn"``: values from N(0, scale^2), read weights as the layer draws its own. ``"coordinates"``: read
            weights 0, values are the places' coordinates, in [-1, 1], and are not trained. ``"none"``: no memory.
            ``"zero_reads, 1/n"``: as ``"zero_reads"`` with a fixed factor of 1 / n on what a site reads, n being the
            inputs of the read weight (`k` channels times the kernel); ``"zero_reads, 1/sqrt(n)"``: with its root.
        scale: Its scale.
    """

    kind: str
    scale: float = 1.0

    def __str__(self) -> str:
        return self.kind if self.kind in ("coordinates", "none") else f"{self.kind} {self.scale:g}"


def apply_start(aim: aimgraph.AimModule, start: Start, generator: Generator) -> None:
    """Give a memory named ``memory`` its first values and read weights.

    Args:
        aim: Transformed with ``init="zero"``; changed in place.
        start: What to draw.
        generator: What to draw with.
    """
    values = aim.get_parameter(VALUES)
    with torch.no_grad():
        for layer, weight in _reads(aim):
            weight.copy_(_drawn(weight, _bound(start, layer, weight), generator))
        if start.kind == "coordinates":
            shape = aimgraph.plan(aim).memories[0].shape
            values.requires_grad_(False).copy_(coordinates(shape))
        elif start.kind.startswith("zero_values"):
            values.zero_()
            _silence_updates(aim)
        else:
            values.copy_(start.scale * torch.randn(values.shape, generator=generator))


def parameter_groups(aim: nn.Module, start: Start, rate: float, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """What an optimiser is to train, each with its rate.

    A fixed factor c on what a site reads is measured as a rate of c times on its read weight: Adam's steps do not
    depend on the scale of a gradient, so the two are the same.

    Args:
        aim: The module.
        start: How its memory starts.
        rate: Of everything that has no factor.
        parameters: What is trained.
    """
    factors = {"zero_reads, 1/n": -1.0, "zero_reads, 1/sqrt(n)": -0.5}
    power = factors.get(start.kind, 0.0)
    if not power:
        return [{"params": parameters, "lr": rate}]
    rates = {id(weight): rate * weight[0].numel() ** power for _, weight in _reads(aim)}
    return [{"params": [parameter], "lr": rates.get(id(parameter), rate)} for parameter in parameters]


def _reads(aim: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """The layer and the read weight of every site."""
    for path, weight in aim.get_submodule(READS).named_parameters():
        yield aim.get_submodule(path.removesuffix(".weight")), weight


def _bound(start: Start, layer: nn.Module, weight: Tensor) -> float:
    """The bound b of U(-b, b); a read weight is [O, k, *kernel]."""
    base, own = torch.as_tensor(layer.weight), weight[0].numel()
    match start.kind:
        case "zero_values":
            return start.scale / math.sqrt(base[0].numel() + own)
        case "drawn":
            return 1 / math.sqrt(base[0].numel() + own)
        case "zero_values, own inputs":
            return start.scale * math.sqrt(3 / own)
        case "zero_values, base":
            return start.scale * math.sqrt(3) * float(base.square().mean().sqrt())
        case _:
            return 0.0


def _drawn(weight: Tensor, bound: float, generator: Generator) -> Tensor:
    return bound * (2 * torch.rand(weight.shape, generator=generator) - 1)


def _silence_updates(aim: nn.Module) -> None:
    """Let every update write zeros: its last layer is zero."""
    if UPDATES in dict(aim.named_modules()):
        for path, parameter in aim.get_submodule(UPDATES).named_parameters():
            if ".head." in f".{path}":
                parameter.zero_()


def coordinates(shape: tuple[int, ...]) -> Tensor:
    """The coordinates of each place and their powers: row, column, row^2, column^2, ..., for each channel one; [N]."""
    rows, cols, channels = shape
    axes = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, cols), indexing="ij")
    return torch.stack([axes[c % 2] ** (c // 2 + 1) for c in range(channels)], dim=2).flatten()
