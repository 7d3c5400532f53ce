"""Models of which one forward leaves something to the next: a graph is called again before it is believed."""

import copy
import functools
import itertools
import random
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from tests.tracing.bases import X


class _Neuron(nn.Module):
    """Integrates what comes in, from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.v = x if self.v is None else self.v * 0.5 + x
        return torch.tanh(self.v)


class _Number(_Neuron):
    """The same from a number on."""

    def __init__(self) -> None:
        super().__init__()
        self.v = 0.0  # type: ignore[assignment]


class _Deciding(_Neuron):
    """The same, and decides by values, so that it runs on real ones."""

    def forward(self, x: Tensor) -> Tensor:
        self.v = x if self.v is None else self.v * 0.5 + x
        return self.v.tanh() if self.v.abs().sum() > 0 else self.v


class _Locked(nn.Module):
    """Dropout with one mask, in train mode, until it is reset."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.v is None:
            self.v = torch.bernoulli(torch.full_like(x, 0.5))
        return x * self.v


class _Mean(nn.Module):
    """Keeps a mean over the batch, which fits any batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(0)
        self.v = mean if self.v is None else self.v * 0.5 + mean
        return x - self.v


class _Held:
    """An object of the user's."""

    v: Tensor | None = None


class _Outside(nn.Module):
    """Keeps its state in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.held = _Held()

    def forward(self, x: Tensor) -> Tensor:
        self.held.v = x if self.held.v is None else self.held.v * 0.5 + x
        return self.held.v


class _History(nn.Module):
    """Keeps what it has seen in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.stack(self.seen).mean(0)


class _Buffered(nn.Module):
    """Keeps its state in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("v", torch.zeros(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.v = self.v * 0.5 + x.mean(0, keepdim=True)
        return x - self.v


class _Around(nn.Module):
    """Layers around a part with a state."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.mix, self.part, self.head = nn.Linear(4, 4), part, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.mix(self.part(x))))


class _Resets(_Around):
    """Resets the part first."""

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.part, _Outside):
            self.part.held.v = None
        elif isinstance(self.part, _History):
            self.part.seen.clear()
        else:
            self.part.v = torch.zeros(1, 4) if isinstance(self.part, _Buffered) else None
        return super().forward(x)


class _Zero(_Around):
    def forward(self, x: Tensor) -> Tensor:
        self.part.v = 0.0
        return self.head(sum(self.part(self.mix(x)) for _ in range(3)))


class _ByBatch(_Around):
    """Resets the part where the batch size is another one."""

    def forward(self, x: Tensor) -> Tensor:
        if self.part.v is not None and self.part.v.shape != x.shape:
            self.part.v = None
        return super().forward(x)


class _Steps(nn.Module):
    """A state of its own, begun anew at another batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.v = nn.Linear(4, 4), None

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        if self.v is None or self.v.shape != y.shape:
            self.v = torch.zeros_like(y)
        self.v = self.v * 0.9 + y
        return self.v


_MEMORY: dict[str, Tensor] = {}


class _AtTheTop(nn.Module):
    """A state in a dict at the top of a file."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        if "y" in _MEMORY and _MEMORY["y"].shape == y.shape:
            y = y + _MEMORY["y"]
        _MEMORY["y"] = y.detach()
        return y


class _Masked(nn.Module):
    """A mask by shape, which is no state."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.mask = nn.Linear(4, 4), None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None or self.mask.shape != x.shape:
            self.mask = x.new_ones(x.shape)
        return self.mix(x * self.mask)


def _called(module: nn.Module, *, train: bool) -> list[Tensor | None]:
    """What a copy gives at calls in a row, at several batch sizes; None where it fails."""
    module, found = copy.deepcopy(module).train(train), []
    _MEMORY.clear()
    for number, batch in enumerate((3, 3, 2, 2, 3)):
        torch.manual_seed(number)
        try:
            found.append(module(torch.randn(batch, 4)).detach())
        except RuntimeError:
            found.append(None)
    _MEMORY.clear()
    return found


_KEPT = [
    *(_Resets(part()) for part in (_Neuron, _Deciding, _Locked, _Mean, _Outside, _History, _Buffered)),
    _Zero(_Number()),
    _ByBatch(_Neuron()),
    _Steps(),
    _AtTheTop(),
]
"""Models of which no graph alone does what the forward does."""


class _DrawnOnce(nn.Module):
    """Keeps what it has drawn at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.offset = nn.Linear(4, 4), None

    def forward(self, x: Tensor) -> Tensor:
        if self.offset is None:
            self.offset = torch.rand(4)
        return self.mix(x) + self.offset


class _DrawnOnceAsProperty(nn.Module):
    """The same, by Python's means."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    @cached_property
    def offset(self) -> Tensor:
        return F.dropout(torch.ones(4), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) + self.offset


class _DrawnAnew(nn.Module):
    """Draws at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) + torch.rand(4)


_TRACED = [_Around(_Neuron()), _Around(_Mean()), _Around(_Locked()), _Masked()]
"""Models whose state, if there is one, is that of a module which the graph calls."""


def _name(base: nn.Module) -> str:
    return type(base).__name__ + "".join(type(part).__name__ for name, part in base.named_children() if name == "part")


@pytest.mark.parametrize("base", _KEPT + _TRACED, ids=_name)
def test_calls_in_a_row_at_several_batch_sizes(base: nn.Module) -> None:
    aim = aimgraph.transform(base, X)
    for train in (False, True):
        expected, seen = _called(base, train=train), _called(aim, train=train)
        for number, (one, other) in enumerate(zip(expected, seen, strict=True)):
            same = one is other if one is None or other is None else torch.equal(one, other)
            assert same, (train, number)
    kept = [note for note in aimgraph.plan(aim).notes if "kept as one call" in note]
    assert len(kept) == (base in _KEPT)
    assert aimgraph.plan(aim).covered == sum(isinstance(part, nn.Linear) for part in base.modules())


def test_only_what_resets_is_one_call() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), _Zero(_Number()), nn.Linear(4, 4))
    plan = aimgraph.plan(nn.Sequential(inner, _Around(_Mean()), nn.Linear(4, 4)), X)
    assert [note.split()[0] for note in plan.notes if "kept as one call" in note] == ["0.1"]
    assert "what 0.1.part keeps from one call to the next is reset, set or read by the forward around it" in str(
        " ".join(plan.notes)
    )


@functools.lru_cache
def _drawn(count: int) -> Tensor:
    return torch.rand(count)


class _DrawnForAll(_DrawnAnew):
    """Draws once per process."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) + _drawn(x.shape[-1])


@pytest.mark.parametrize("kind", [_DrawnOnce, _DrawnOnceAsProperty, _DrawnAnew])
def test_random_numbers_are_drawn_as_often_as_the_forward_draws_them(kind: type[nn.Module]) -> None:
    base = kind()
    aim = aimgraph.transform(base, X)
    seen = []
    for module in (copy.deepcopy(base), aim):
        torch.manual_seed(0)
        seen.append([module(X) for _ in range(3)])
    assert all(map(torch.equal, *seen))
    assert torch.equal(seen[0][0], seen[0][1]) is (kind is not _DrawnAnew)
    kept = [note for note in aimgraph.plan(aim).notes if "kept as one call" in note]
    assert bool(kept) is (kind is not _DrawnAnew)


def test_random_numbers_that_a_cache_outside_of_the_model_keeps_are_refused() -> None:
    with pytest.raises(aimgraph.TraceError, match="does not do what its forward does"):
        aimgraph.transform(_DrawnForAll(), X)


class _Drawing(nn.Module):
    """Scales by what it takes from a generator of its own."""

    def __init__(self, source: Any, take: Callable[[Any], Any]) -> None:
        super().__init__()
        self.mix, self.source, self.take = nn.Linear(4, 4), source, take

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) * self.take(self.source)


SOURCES: list[tuple[Any, Callable[[Any], Any]]] = [
    (random.Random(0), random.Random.random),
    (np.random.default_rng(0), lambda source: source.random()),
    (np.random.RandomState(0), lambda source: source.rand()),
    (torch.Generator().manual_seed(0), lambda source: torch.rand(1, generator=source)),
    (itertools.count(1), lambda source: float(next(source))),
]


@pytest.mark.parametrize(("source", "take"), SOURCES, ids=lambda value: type(value).__name__)
def test_generators_of_a_models_own_go_on_where_they_stand(source: Any, take: Callable[[Any], Any]) -> None:
    base = _Drawing(source, take)
    aim, expected = aimgraph.transform(base, X), copy.deepcopy(base)
    for _ in range(3):
        wanted = expected(X)
        assert torch.equal(aim(X), wanted)
        assert torch.equal(base(X), wanted)
