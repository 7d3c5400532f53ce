"""A transform leaves nothing behind: not in caches, not in classes, not in objects that hooks keep."""

import copy
import functools
import pickle
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import aimgraph

X = torch.randn(2, 8)


@functools.lru_cache
def grid(count: int) -> Tensor:
    return torch.linspace(0, 1, count)


MASKS: dict[int, Tensor] = {}
SEEN: list[Tensor] = []
last: Tensor | None = None


class Net(nn.Module):
    shared: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 2)

    @staticmethod
    @functools.lru_cache
    def ramp(count: int) -> Tensor:
        return torch.arange(count) / count

    def forward(self, x: Tensor) -> Tensor:
        global last
        count = int(x.shape[1])
        if count not in MASKS:
            MASKS[count] = torch.ones(count)
        if Net.shared is None:
            Net.shared = torch.full((8,), 0.5)
        SEEN.append(x)
        y = self.mix((x + grid(8) + self.ramp(8)) * MASKS[count] + Net.shared)
        last = y
        return y


def test_caches_outside_of_the_module_hold_no_fake_tensors() -> None:
    grid.cache_clear(), Net.ramp.cache_clear(), MASKS.clear(), SEEN.clear()
    Net.shared = None
    base = Net()
    untouched = copy.deepcopy(base)
    aimgraph.plan(base, X)
    aim = aimgraph.transform(base, X)
    held = [*MASKS.values(), *SEEN, Net.shared, last]
    assert not any(isinstance(value, FakeTensor | torch.fx.Proxy) for value in held)
    for module in (aim, base, untouched):
        found = module(X)
        assert type(found.detach()) is Tensor
        assert torch.equal(found, untouched(X))
    assert Net.ramp(8).sum() == 3.5


def test_what_is_cached_before_stays_what_it_is() -> None:
    base = Net()
    wanted = base(X)
    kept = Net.shared
    aim = aimgraph.transform(base, X)
    assert Net.shared is kept
    assert torch.equal(aim(X), wanted)


class Keep:
    def __init__(self) -> None:
        self.output: Any = None

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.output = output


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
        self.keep = Keep()
        self.body[0].register_forward_hook(self.keep)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3)) + self.keep.output.mean((2, 3))


def test_an_object_that_a_hook_keeps_features_in() -> None:
    base, x = Watched(), torch.randn(2, 3, 8, 8)
    aim = aimgraph.transform(base, x)
    wanted = base(x)
    assert not isinstance(aim.keep.output, FakeTensor | torch.fx.Proxy)
    assert torch.equal(pickle.loads(pickle.dumps(aim))(x), wanted)
    assert torch.equal(aim(x), wanted)


class Merging(nn.Linear):
    """Adds its low-rank part to its weight in eval mode, as LoRA layers do."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.part, self.merged = nn.Parameter(torch.randn(8, 8)), False

    def train(self, mode: bool = True) -> "Merging":
        super().train(mode)
        if mode == self.merged:
            self.weight.data += -self.part if mode else self.part
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight, self.bias)
        return y if self.merged else y + x @ self.part.T


def test_weights_that_a_mode_merges_are_those_of_before() -> None:
    for inplace in (False, True):
        base = nn.Sequential(Merging(), nn.Linear(8, 2))
        before = {name: value.clone() for name, value in base.state_dict().items()}
        aim = aimgraph.transform(base, X, inplace=inplace)
        for module in (base, aim):
            assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
        assert not aim.get_submodule("0").merged


class Listed(nn.Module):
    """Knows all modules of its class, and resets them at once."""

    instances: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


LISTS: list[Callable[[nn.Module], Any]] = [
    lambda module: [module],
    lambda module: {"first": module},
    lambda module: WeakSet([module]),
    lambda module: WeakKeyDictionary({module: 0}),
]


@pytest.mark.parametrize("listing", LISTS)
def test_lists_of_instances_are_told(listing: Callable[[nn.Module], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    base, x = nn.Sequential(Listed(), nn.Linear(3, 2)), torch.randn(2, 3)
    monkeypatch.setattr(Listed, "instances", listing(base[0]))
    with pytest.warns(UserWarning, match=r"Listed\.instances holds modules of the model that was given") as warned:
        aim = aimgraph.transform(base, x, shape=(1,))
    assert warned[0].filename == __file__
    assert any("go through aim.modules() instead" in note for note in aimgraph.plan(aim).notes)
    with warnings.catch_warnings(action="error"):
        aimgraph.transform(copy.deepcopy(base), x, shape=(1,))
