"""Activation checkpointing inside a forward: what writes buffers writes them twice, as in the base."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import aimgraph
from tests.nets import randomise


class Checkpointing(nn.Module):
    def __init__(self, inner: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.inner, self.last, self.reentrant = nn.Linear(4, 6), inner, nn.Linear(6, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.last(checkpoint(self.inner, self.first(x), use_reentrant=self.reentrant))


class Averaging(nn.Module):
    """Keeps a running mean, through a view of its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        if self.training:
            self.mean[0].lerp_(h.detach().mean(0), 0.1)
        return h + self.mean[0].clone()


class Standardising(nn.Module):
    """Batch normalisation as a function, without affine weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("var", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(self.linear(x), self.mean, self.var, training=self.training)


WRITING: dict[str, Callable[[], nn.Module]] = {
    "norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)),
    "view of a buffer": Averaging,
    "function": Standardising,
}
QUIET: dict[str, Callable[[], nn.Module]] = {
    "layer norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.ReLU(inplace=True)),
    "norm without statistics": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False)),
    "frozen norm": lambda: nn.Sequential(nn.Linear(6, 6), _Frozen(6)),
}


class _Frozen(nn.BatchNorm1d):
    def train(self, mode: bool = True) -> Any:
        del mode
        return super().train(False)


def trained(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The buffers after two steps, and the gradients."""
    module.train()
    for _ in range(2):
        module(x).square().sum().backward()
    found = dict(module.named_buffers())
    found |= {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    return {name: one for name, one in found.items() if not name.startswith("aim.")}


def notes_of(aim: nn.Module, text: str) -> list[str]:
    return [note for note in aimgraph.plan(aim).notes if text in note]


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", [*WRITING, *QUIET])
def test_buffers_are_those_of_the_base(name: str, reentrant: bool, outer: bool) -> None:
    torch.manual_seed(0)
    base: nn.Module = Checkpointing((WRITING | QUIET)[name](), reentrant=reentrant)
    base = nn.Sequential(base, nn.Linear(2, 2)) if outer else base
    x = torch.randn(8, 4)
    aim = aimgraph.transform(base, x)
    assert aimgraph.verify(base, aim).ok
    kept = notes_of(aim, "in the backward pass, and a graph writes them once")
    assert [note.split(" (")[0] for note in kept] == (["0" if outer else "the model"] if name in WRITING else [])
    wanted, seen = trained(base, x), trained(aim, x)
    assert wanted.keys() == seen.keys()
    assert all(torch.equal(one, seen[key]) for key, one in wanted.items())
    if name in WRITING:
        statistic = next(iter(base.buffers()))
        assert bool(statistic.any())
    assert torch.equal(base.eval()(x), aim.eval()(x))
    trained(randomise(aim), x)
    assert all(
        bool(parameter.grad.any()) for parameter in aimgraph.memory_parameters(aim) if parameter.grad is not None
    )
    torch.testing.assert_close(aimgraph.fold(aim.eval())(x), aim(x))
