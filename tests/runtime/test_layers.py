"""Layers in concat form: one weight for features and memory."""

import pytest
import torch
from torch import nn

from aimgraph.runtime.layers import ConcatLayer, concat_weight, groups_of, split_weight
from aimgraph.runtime.read_layers import read_layer
from aimgraph.runtime.reads.view import interleave
from aimgraph.runtime.start import Start

LAYERS = {
    "conv": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1),
    "linear": nn.Linear(4, 6),
}


@pytest.mark.parametrize("name", LAYERS)
def test_widened_is_the_sum(name: str) -> None:
    layer = LAYERS[name].double()
    reads = [read_layer(layer, k, Start("drawn")) for k in (2, 3)]
    shape = (5, 7, 4) if name == "linear" else (5, 4, 7, 6)
    axis = len(shape) - 1 if name == "linear" else 1
    x = torch.randn(shape, dtype=torch.float64)
    views = [torch.randn([k if i == axis else s for i, s in enumerate(shape)], dtype=torch.float64) for k in (2, 3)]
    wide = ConcatLayer(layer, reads)
    assert not list(wide.parameters())
    total = layer(x) + reads[0](views[0]) + reads[1](views[1])
    assert (wide(interleave(x, views, groups_of(layer), axis)) - total).abs().max() < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_narrow_undoes_widen(name: str) -> None:
    layer = LAYERS[name].double()
    weights = [read_layer(layer, k, Start("drawn")).weight.detach() for k in (2, 1)]
    base, reads = split_weight(layer, concat_weight(layer, layer.weight.detach(), weights), [2, 1])
    assert torch.equal(base, layer.weight)
    assert all(torch.equal(a, b) for a, b in zip(reads, weights, strict=True))
