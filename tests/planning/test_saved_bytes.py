"""What a memory costs in the split form, counted, not timed."""

import torch
from torch import nn

import aimgraph
from aimgraph.bench.footprint import saved_bytes
from aimgraph.models_zoo import resnet50_keras


def test_saved_for_backward_bytes_of_resnet50() -> None:
    """A training forward in split form keeps at most 1 % more for the backward pass than the base."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 96, 96)
    base = resnet50_keras(10).train()
    split = aimgraph.transform(base, x, start="drawn").train()
    concat = aimgraph.transform(base, x, start="drawn", lowering="concat").train()
    before, after, literal = (saved_bytes(one, lambda one=one: one(x)) for one in (base, split, concat))
    assert before > 50e6
    assert after <= 1.01 * before
    assert literal > 1.02 * before  # the counter sees what concatenation keeps


def test_the_counter_counts_storages_once_and_no_parameters() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(8, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mix(x) * self.mix(x)  # saves x twice and both products

    net, x = Net(), torch.randn(4, 8)
    assert saved_bytes(net, lambda: net(x)) == (1 + 2) * 4 * 8 * 4
