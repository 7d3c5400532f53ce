"""How large read weights are drawn."""

import math

import pytest
import torch
from torch import nn

from aimgraph.runtime.read_bounds import READ_BOUND, bounds_of, feature_bound, layer_bound, memory_bound
from aimgraph.runtime.read_layers import read_layer
from aimgraph.runtime.start import Start

LAYERS = {
    "conv": nn.Conv2d(16, 400, 3),
    "grouped": nn.Conv2d(16, 400, 3, groups=4),
    "linear": nn.Linear(32, 4000),
    "transposed": nn.ConvTranspose1d(16, 400, 2, stride=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_read_weights_are_drawn_within_the_bound(name: str) -> None:
    layer = LAYERS[name]
    weight = read_layer(layer, 5, Start("zero_values", 2.0)).weight.abs().max().item()
    assert 0.99 < weight / (2 * READ_BOUND(layer, 5)) <= 1 + 1e-6
    assert bounds_of(layer, 5)["zero_reads"] == 0


def test_the_bound_of_a_new_layer() -> None:
    assert layer_bound(LAYERS["conv"], 4) == pytest.approx(1 / math.sqrt((16 + 4) * 9))
    assert layer_bound(LAYERS["grouped"], 4) == pytest.approx(1 / math.sqrt((4 + 4) * 9))
    assert layer_bound(LAYERS["linear"], 4) == pytest.approx(1 / math.sqrt(32 + 4))


def test_values_of_unit_deviation_make_a_term_of_unit_deviation() -> None:
    torch.manual_seed(0)
    for name in ("conv", "linear", "grouped"):
        layer, bound = LAYERS[name], memory_bound(LAYERS[name], 5)
        assert _deviation(layer, 5, bound) == pytest.approx(1, rel=0.1)


def test_values_of_unit_deviation_add_as_much_as_features_of_unit_deviation() -> None:
    torch.manual_seed(0)
    for name in ("conv", "linear", "grouped"):
        layer = LAYERS[name]
        shape = (64, 16, 3, 3) if isinstance(layer, nn.Conv2d) else (64, 32)
        with torch.no_grad():
            features = (layer(torch.randn(shape)) - layer.bias.view(-1, *[1] * (len(shape) - 2))).std().item()
        assert _deviation(layer, 5, feature_bound(layer, 5)) == pytest.approx(features, rel=0.1)
    on_meta = nn.Conv2d(16, 400, 3, device="meta")
    assert feature_bound(on_meta, 5) == layer_bound(on_meta, 5)


def _deviation(layer: nn.Module, channels: int, bound: float) -> float:
    """Of what a read gives of values of unit deviation, at a bound of its weight."""
    read = read_layer(layer, channels, Start("zero_values", bound / READ_BOUND(layer, channels)))  # type: ignore[arg-type]
    shape = (64, channels, 3, 3) if isinstance(layer, nn.Conv2d) else (64, channels)
    return float(read(torch.randn(shape)).detach().std())
