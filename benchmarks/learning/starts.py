"""How a memory starts: which factor of its reads is zero, and how large the other is."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, nn

import aimgraph
from aimgraph.reproducible import uniform
from aimgraph.runtime.read_bounds import feature_bound, layer_bound, memory_bound

READS = "aim.memory.reads"
OTHER_BOUNDS: dict[str, Callable[[nn.Module, int], float]] = {
    "zero_values, memory bound": memory_bound,
    "zero_values, feature bound": feature_bound,
}
FACTORS: dict[str, Callable[[int], float]] = {
    "noise, 1/n": lambda n: 1 / n,
    "noise, 1/sqrt(n)": lambda n: 1 / math.sqrt(n),
    "noise, min(1, 25/n)": lambda n: min(1.0, 25 / n),
}
"""Kind -> the factor on what a site reads, from the number of inputs of its read weight."""


@dataclass(frozen=True)
class Start:
    """One start.

    Attributes:
        kind: ``"default"``: that of `aimgraph.AimConfig`, with the scale of its plan. ``"zero_reads"``,
            ``"zero_values"`` and ``"drawn"`` as there, with a scale. ``"zero_values, memory
            bound"`` and ``"zero_values, feature bound"``: read weights are drawn in another size, see
            `aimgraph.runtime.read_bounds`. ``"noise"``: read weights 0, values are noise without a smooth field.
            Those of `FACTORS`: the same with that factor on what a site reads, n being
            the inputs of the read weight, `k` channels times the kernel. ``"coordinates"``:
            read weights 0, values are the places' coordinates and are not trained. ``"none"``: no memory.
        scale: Its scale.
    """

    kind: str
    scale: float = 1.0

    def __str__(self) -> str:
        return self.kind if self.kind in ("default", "coordinates", "none") else f"{self.kind} {self.scale:g}"

    @property
    def options(self) -> dict[str, Any]:
        """Those of `aimgraph.AimConfig`."""
        if self.kind == "coordinates":
            return {"start": "zero_reads", "source": "coordinates", "trainable": False}
        if self.kind == "default":
            return {}
        kind = self.kind.split(",")[0]
        return {"start": "zero_reads" if kind == "noise" else kind, "start_scale": self.scale}


def redraw(aim: aimgraph.AimModule, start: Start, seed: int) -> None:
    """Give values, or read weights, what no option of `aimgraph.AimConfig` gives them."""
    if start.kind.startswith("noise"):
        value = aim.get_parameter("aim.memory.source.value")
        with torch.no_grad():
            value.copy_(uniform(value.shape, math.sqrt(3) * start.scale, Generator().manual_seed(seed)))
    if start.kind in OTHER_BOUNDS:
        for layer, weight in _reads(aim):
            channels = weight.shape[1]
            with torch.no_grad():
                weight.mul_(OTHER_BOUNDS[start.kind](layer, channels) / layer_bound(layer, channels))


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
    if start.kind not in FACTORS:
        return [{"params": parameters, "lr": rate}]
    factor = FACTORS[start.kind]
    rates = {id(weight): rate * factor(weight[0].numel()) for _, weight in _reads(aim)}
    return [{"params": [parameter], "lr": rates.get(id(parameter), rate)} for parameter in parameters]


def _reads(aim: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter]]:
    """The layer and the read weight of every site."""
    for path, weight in aim.get_submodule(READS).named_parameters():
        yield aim.get_submodule(path.removesuffix(".weight")), weight
