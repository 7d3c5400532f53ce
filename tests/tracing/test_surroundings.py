"""What surrounds a transform or a forward: autocast, inference mode, other threads, contexts made before."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import aimgraph
from tests.nets import randomise

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)
        self.half = torch.autocast("cpu", dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        with self.half:
            y = self.first(x)
        return self.second(y.float())


class _Decorated(_Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.part(x).float())

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def part(self, x: Tensor) -> Tensor:
        return self.first(x)


class _Limits(_Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y.masked_fill(y < 0, torch.finfo(y.dtype).min / 1e30))


class _NoGradient(_Two):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("kind", [_Two, _Decorated, _Limits, _NoGradient])
def test_contexts_made_before_the_forward(kind: type[nn.Module]) -> None:
    base = kind()
    aim = aimgraph.transform(base, X, verify="full")
    assert aimgraph.verify(base, aim).ok
    plan = aimgraph.plan(aim)
    assert (plan.covered, plan.fallback) == (2, 0)


class _Replaced(nn.Module):
    """Calls a layer with other weights than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional_call(self.first, {"weight": self.first.weight * 2}, (x,)))


def test_a_layer_called_with_other_weights_leads_to_one_call_around_it() -> None:
    base = _Replaced()
    aim = aimgraph.transform(base, X, verify="full")
    assert aimgraph.verify(base, aim).ok
    assert aimgraph.plan(aim).fallback >= 1


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_transform_does_not_depend_on_what_is_around_it(around: Any) -> None:
    base = _network()
    with around():
        aim = aimgraph.transform(base, X)
        assert aimgraph.plan(base, X).covered == 2
    assert str(aimgraph.plan(aim)) == str(aimgraph.plan(aimgraph.transform(base, X)))
    randomise(aim)
    aim(X).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in aim.parameters())


def test_transforms_in_several_threads() -> None:
    call, asked = nn.Module.__call__, isinstance
    bases = [_network() for _ in range(4)]
    made: dict[int, nn.Module] = {}

    def work(index: int) -> None:
        made[index] = aimgraph.transform(bases[index], X)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(bases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(made[index](X), base(X)) for index, base in enumerate(bases))
    assert nn.Module.__call__ is call
    assert isinstance is asked


class _Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.both = nn.Linear(4, 3), nn.Bilinear(5, 5, 2)
        self.weight, self.other = nn.Parameter(torch.ones(3, 5)), nn.Parameter(torch.ones(5, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) @ self.weight
        return self.both(y, torch.einsum("bi,ij->bj", y, self.other.t())) + (y * y).sum()


def test_products_that_do_not_read_are_listed() -> None:
    skipped = {(item.path, item.kind) for item in aimgraph.plan(_Products(), X).skipped}
    assert skipped == {("weight", "matmul"), ("other", "einsum"), ("both", "Bilinear")}
