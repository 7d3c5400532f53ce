"""Grad modes, autocast and checkpointing inside a forward."""

import pickle

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from tests.tracing.bases import Base, X


class NoGrad(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.mix(x)
        return self.mix(y)


class EnablesGrad(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = self.mix(x)
        return y


class SetsGrad(Base):
    @torch.no_grad()
    def frozen(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            pass
        with torch.set_grad_enabled(self.training):
            return self.mix(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.frozen(x) * 2)


class Autocast(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            y = self.mix(x)
            with torch.autocast(device_type=x.device.type, enabled=False):
                y = self.mix(y.float()) + y
        return y.float()


class Infers(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            scale = self.std * 2
        return self.mix(x) + scale.clone()


class Fails(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return self.mix(x.reshape(-1, 4)[:3].reshape(3, 4))


class Checkpoints(Base):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.reentrant = nn.Linear(X.shape[-1], X.shape[-1]), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.mix, self.stem(x).relu(), use_reentrant=self.reentrant)


def _loses_gradients() -> bool:
    """Whether autocast goes on with a weight that it has cast, and kept, where no gradient was wanted."""
    weight = torch.ones(2, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            torch.nn.functional.linear(torch.ones(1, 2), weight)
        return not torch.nn.functional.linear(torch.ones(1, 2), weight).requires_grad


@pytest.mark.parametrize("kind", [NoGrad, EnablesGrad, SetsGrad, Autocast, Infers])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_grad_modes_and_autocast_stay_where_they_are(kind: type[Base], grad: bool, autocast: bool) -> None:
    if autocast and grad and kind in (NoGrad, SetsGrad) and _loses_gradients():
        pytest.skip(f"torch {torch.__version__}: autocast keeps a weight cast under no_grad, without gradients")
    base = kind()
    aim = pickle.loads(pickle.dumps(aimgraph.transform(base, X, verify="full")))
    assert aimgraph.verify(base, aim).ok
    for mode in (True, False):
        base.train(mode), aim.train(mode)
        with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            expected, seen = base(X), aim(X)
            assert torch.is_grad_enabled() == grad
        assert torch.equal(expected, seen)
        assert expected.requires_grad == seen.requires_grad
        if expected.requires_grad:
            gradients = [torch.autograd.grad(y.sum(), m.mix.weight)[0] for y, m in ((expected, base), (seen, aim))]
            assert torch.equal(*gradients)


def test_a_forward_that_fails_inside_a_region_leaves_the_modes_as_they_were() -> None:
    aim = aimgraph.transform(Fails(), X)
    assert aim(X).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="shape"):
        aim(X[:2])
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.autocast_increment_nesting(), torch.autocast_decrement_nesting()) == (1, 0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_is_noted_and_learns(reentrant: bool) -> None:
    base = Checkpoints(reentrant)
    aim = aimgraph.transform(base, X)
    for module in (base, aim):
        module(X).square().sum().backward()
    gradients = {name: p.grad for name, p in aim.named_parameters()}
    assert all(torch.equal(p.grad, gradients[name]) for name, p in base.named_parameters())
    assert any("activation checkpointing inside the forward is not kept" in note for note in aimgraph.plan(aim).notes)
    assert torch.equal(aim(X), base(X))
