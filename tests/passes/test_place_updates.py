"""Where updates read their features."""

import pytest
import torch
from torch import Tensor, nn

from aimgraph.config import AimConfig
from aimgraph.errors import PlanError
from aimgraph.models_zoo import resnet50_keras, vgg16
from aimgraph.passes import FindSites, PlaceUpdates
from aimgraph.planning.sites import UpdateSpot
from tests.passes.helpers import fingerprint, program_for


def spots(net: str | nn.Module, x: Tensor | None = None, updates: object = "stages") -> tuple[UpdateSpot, ...]:
    program, x = program_for(net, x, AimConfig(updates=updates))
    program = FindSites().run(program).program
    before = fingerprint(program)
    result = PlaceUpdates().run(program)
    assert not result.modified
    assert fingerprint(program) == before
    return result.program.plan.spots


def test_stages_of_resnet() -> None:
    found = spots(resnet50_keras(10), torch.zeros(2, 3, 64, 64))
    assert [(s.grid, s.features) for s in found] == [
        ((32, 32), 64),
        ((34, 34), 64),  # the padded stem output
        ((16, 16), 256),
        ((8, 8), 512),
        ((4, 4), 1024),
        ((2, 2), 2048),
        ((), 2048),
    ]
    assert found[2].where == "stages.0.2.relu (16x16)"


def test_stages_of_vgg_take_what_relu_left() -> None:
    found = spots(vgg16(10, hidden=32), torch.zeros(2, 3, 64, 64))
    assert [s.grid for s in found] == [(64, 64), (32, 32), (16, 16), (8, 8), (4, 4), (2, 2), (7, 7), ()]
    assert found[0].where == "features.3 (64x64)"  # the in-place ReLU behind the second convolution


class _Branches(nn.Module):
    """Two branches meet in a sum: no tensor inside a branch lies on every path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        scale = x.shape[1]  # a size is no path for features
        return self.head((self.left(x) + self.right(x)) / scale)


def test_a_stage_end_dominates_the_output() -> None:
    found = spots(_Branches().double(), torch.zeros(2, 3, 5, 5, dtype=torch.float64))
    assert [s.where for s in found] == ["truediv (5x5)"]


class _Overwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        torch.relu_(y)
        y += 1
        return self.head(y)


def test_what_is_overwritten_in_place_later_counts_as_overwritten() -> None:
    found = spots(_Overwritten(), torch.zeros(2, 3, 5, 5), updates=("conv",))
    assert [s.nodes for s in found] == [{"both": "iadd"}]


def test_module_paths() -> None:
    found = spots("residual", updates=("block", "stem.*"))
    assert [s.where for s in found] == ["stem.0", "stem.2", "block"] or [s.where for s in found][-1] == "block"
    assert found[-1].features == 8


@pytest.mark.parametrize("name", ["tokens", "channels_last", "sequence_first"])
def test_layout_of_tokens(name: str) -> None:
    expected = {
        "tokens": [((7,), 8, 0, 2), ((), 8, 0, 1)],
        "channels_last": [((5, 6), 6, 0, 1)],
        "sequence_first": [((6,), 2, 1, 2)],
    }
    assert [(s.grid, s.features, s.batch_axis, s.channel_axis) for s in spots(name)] == expected[name]


def test_both_graphs_get_the_same_spots() -> None:
    found = spots("functional_dropout")
    assert all(set(spot.nodes) == {"train", "eval"} for spot in found)


def test_nothing_matches() -> None:
    with pytest.raises(PlanError, match=r"updates: 'blok' matches nothing; near misses: block"):
        spots("residual", updates=("blok",))


def test_an_output_that_can_not_be_written() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.total = nn.Linear(3, 3), _Sum()

        def forward(self, x: Tensor) -> Tensor:
            return self.total(self.mix(x))

    with pytest.raises(PlanError, match=r"output of 'total', \(\), can't be written into a memory"):
        spots(Net(), torch.zeros(2, 3), updates=("total",))


class _Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum()
