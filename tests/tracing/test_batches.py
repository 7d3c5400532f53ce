"""Models that take some batch sizes only."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from tests.tracing.bases import Base, X


class _Queue(nn.Module):
    """A queue of keys, as in contrastive learning: batches that divide its length fit."""

    def __init__(self, length: int = 48) -> None:
        super().__init__()
        self.mix, self.length = nn.Linear(4, 4), length
        self.register_buffer("keys", torch.linspace(-1, 1, 4 * length).reshape(4, length))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        key, batch = self.mix(x), x.shape[0]
        assert self.length % batch == 0
        place = int(self.place)
        self.keys[:, place : place + batch] = key.detach().t()
        self.place[0] = (place + batch) % self.length
        return key @ self.keys.clone()


class _Divides(nn.Module):
    """Asks for its batch sizes, and nothing else."""

    def forward(self, x: Tensor) -> Tensor:
        if 24 % x.shape[0]:
            raise ValueError("24 samples in equal parts")
        return x


class _Frames(nn.Module):
    """The batch holds four frames of each sample, which look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.view(x.shape[0] // 4, 4, 4)
        x = torch.cat([frames[:, 1:], frames[:, :1]], 1).reshape(-1, 4)
        return self.head(self.mix(x).relu()).view(-1, 4, 2).mean(1)


class _Pairs(Base):
    """The first half of the batch beside the second one."""

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.mix(x).chunk(2)
        return one * other


def _divides() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), _Divides())


@pytest.mark.parametrize(
    ("build", "batch", "taken"),
    [
        (_Queue, 2, None),  # 3 divides 48, too
        (_Queue, 4, (4, 8)),
        (_Queue, 8, (8, 16)),
        (_Queue, 1, None),
        (_divides, 8, (4, 8)),
        (_divides, 12, (12, 24)),
        (_divides, 24, (12, 24)),
        (_Frames, 4, (4, 8)),
        (_Pairs, 6, (6, 12)),
    ],
)
def test_twice_and_half_as_many_samples_are_tried(build: type[nn.Module], batch: int, taken: object) -> None:
    base = build().eval()
    aim = aimgraph.transform(base, torch.randn(batch, 4))
    assert aim._record.batches == taken
    assert all(call.batch_ratio == 1 for read in aimgraph.plan(aim).memories[0].reads for call in read.calls)
    for size in taken or (2, 3):
        x = torch.randn(size, 4)
        assert torch.equal(copy.deepcopy(aim)(x), copy.deepcopy(base)(x))
    assert aimgraph.verify(base, aim).ok


def test_batch_sizes_can_be_given(tmp_path: Path) -> None:
    base, x = _divides(), torch.randn(5, 4)
    with pytest.raises(aimgraph.ExampleInputError, match=r"24 samples in equal parts.*example_batches=\(4, 8\)"):
        aimgraph.transform(base, x)
    aim = aimgraph.transform(base, x, example_batches=(8, 3))
    assert aim._record.batches == (3, 8)
    assert aimgraph.verify(base, aim).ok
    assert aimgraph.plan(base, x, example_batches=(3, 8)).covered == 1
    aimgraph.save(aim, tmp_path / "saved")
    assert aimgraph.load(tmp_path / "saved", base)._record.batches == (3, 8)


@pytest.mark.parametrize("given", [8, (4, 4), (4,), ("a", 2), (0, 2), (2, True)])
def test_what_are_no_two_batch_sizes(given: object) -> None:
    with pytest.raises(aimgraph.ConfigError, match="give two batch sizes that the model takes"):
        aimgraph.transform(_divides(), X, example_batches=given)


def test_an_assertion_without_a_text_is_named() -> None:
    class Three(Base):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] != 3:
                raise AssertionError
            return self.mix(x)

    with pytest.raises(aimgraph.ExampleInputError, match=r"AssertionError at .*test_batches.py:\d+ in forward"):
        aimgraph.transform(Three(), X)
