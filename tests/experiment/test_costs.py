"""What an arm costs, and that measuring leaves it as it is."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.experiment.costs import costs


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(8, 16, 3, 2, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


@pytest.fixture
def x() -> Tensor:
    return torch.randn(16, 1, 8, 8)


def test_multiply_adds_are_those_of_one_example(x: Tensor) -> None:
    found = costs(network(), x)
    assert found.macs == 64 * 8 * 9 + 16 * 16 * 8 * 9 + 160
    assert (found.parameters, found.trained, found.notes) == (1434, 1434, ())
    assert costs(network(), x[:4]).macs == found.macs


def test_a_memory_costs_what_its_reads_do(x: Tensor) -> None:
    base, aim = costs(network(), x), aimgraph.transform(network(), x[:2], shape=(4, 4, 2))
    found = costs(aim, x)
    assert found.parameters - base.parameters == aimgraph.plan(aim).added_parameters
    assert found.macs is not None
    assert base.macs is not None
    assert found.macs - base.macs == 64 * 8 * 9 + 16 * 16 * 9 + 32 * 10  # one channel, or 32 features
    frozen = costs(aimgraph.freeze_base(aim), x)
    assert frozen.macs == found.macs
    assert frozen.trained == aimgraph.plan(aim).added_parameters


def test_what_is_kept_grows_with_the_batch_and_shrinks_where_the_base_is_frozen(x: Tensor) -> None:
    aim = aimgraph.transform(network(), x[:2], shape=(4, 4, 2))
    whole, half = (costs(aim, batch).kept_bytes for batch in (x, x[:8]))
    lean = costs(aimgraph.freeze_base(aim), x).kept_bytes
    assert whole is not None
    assert half is not None
    assert lean is not None
    assert 1.8 < whole / half < 2.2
    assert lean < whole / 10


def state(module: nn.Module) -> list[Any]:
    """All that measuring must not change."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [
        [(name, one.data_ptr(), one.detach().clone()) for name, one in tensors],
        [one.training for one in module.modules()],
        [None if one.grad is None else one.grad.clone() for one in module.parameters()],
        torch.random.get_rng_state(),
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("train", [False, True])
def test_measuring_leaves_all_as_it_is(x: Tensor, train: bool) -> None:
    aim = aimgraph.transform(network(), x[:2], shape=(4, 4, 2), updates="stages", carry="state", write_in_eval=True)
    aim.train()(x).sum().backward()
    aim.train(train)
    before = state(aim)
    copied = copy.deepcopy(before)
    found = costs(aim, x)
    assert found.kept_bytes
    assert same(before, copied)
    assert same(state(aim), before)


def test_products_of_attention_are_counted() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    found = costs(layer, torch.randn(4, 5, 16))
    assert found.macs == 5 * 4 * 16 * 16 + 2 * 5 * 5 * 16 + 2 * 5 * 16 * 32


class Refuses(nn.Module):
    """Takes no batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4] -> [B, 2]."""
        if len(x) == 1:
            raise ValueError("one example is too few")
        out: Tensor = self.layer(x)
        return out


class Never(nn.Module):
    """Takes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Nothing."""
        raise ValueError("never")


def test_what_cannot_be_measured_is_none_and_said() -> None:
    found = costs(Refuses(), torch.randn(4, 4))
    assert found.macs is None
    assert found.kept_bytes is not None
    assert len(found.notes) == 1
    assert "multiply-adds can't be had: " in found.notes[0]
    assert "one example is too few" in found.notes[0]
    nothing = costs(Never(), torch.randn(4, 4))
    assert (nothing.parameters, nothing.macs, nothing.kept_bytes, len(nothing.notes)) == (0, None, None, 2)
