"""Models that differentiate in their forward: forces, residuals of differential equations."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad

import aimgraph
from aimgraph.torch_private import tree_leaves


class _Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(3, 8), nn.Linear(8, 1)

    def energy(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(x)))


class _Forces(_Energy):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_(True)
        energy = self.energy(x).sum((1, 2))
        return energy, -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]


class _Imported(_Energy):
    """The function under its own name, on the input itself, and no second derivatives in eval mode."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        energy = self.energy(x)
        ones = [torch.ones_like(energy)]
        return energy, grad([energy], [x], ones, retain_graph=self.training, create_graph=self.training)[0]


class _Enabled(_Forces):
    """Runs without gradients around it, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            return super().forward(x)


class _Decides(_Forces):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, forces = super().forward(x)
        if forces.abs().max() > 1e6:
            raise ValueError("too far")
        return energy, forces


class _Part(nn.Module):
    """Layers around what differentiates."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.part, self.after = nn.Linear(3, 3), _Forces(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.part(self.before(x))[1])


class _Head(nn.Module):
    """Differentiates what other modules have computed."""

    def forward(self, energy: Tensor, x: Tensor) -> Tensor:
        return torch.autograd.grad(energy.sum(), x, create_graph=True)[0]


class _Apart(_Energy):
    def __init__(self) -> None:
        super().__init__()
        self.last = _Head()

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        return self.last(self.energy(x), x)


class _Functional(_Energy):
    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(lambda one: self.energy(one).sum()))(x)


class _Residual(nn.Module):
    """Of Burgers' equation; the inputs require gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        def along(y: Tensor, z: Tensor) -> Tensor:
            return torch.autograd.grad(y, z, torch.ones_like(y), create_graph=True)[0]

        u = self.net(torch.cat([x, t], 1))
        slope = along(u, x)
        return u, along(u, t) + u * slope - 0.01 * along(slope, x)


_WHOLE = ["the model"]
_KINDS: list[tuple[type[nn.Module], list[str]]] = [
    (_Forces, _WHOLE),
    (_Imported, _WHOLE),
    (_Enabled, _WHOLE),
    (_Decides, _WHOLE),
    (_Functional, _WHOLE),
    (_Residual, _WHOLE),
    (_Part, ["part"]),
    (_Apart, []),
]


def _inputs(kind: type[nn.Module], batch: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    if kind is _Residual:
        return tuple(torch.rand(batch, 1, generator=generator).requires_grad_() for _ in range(2))
    return (torch.randn(batch, 5, 3, generator=generator),)


def _backward(module: nn.Module, inputs: Any) -> dict[str, Tensor | None]:
    sum(leaf.square().sum() for leaf in tree_leaves(module(*inputs))).backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize(("kind", "kept"), _KINDS)
def test_derivatives_in_a_forward(kind: type[nn.Module], kept: list[str]) -> None:
    base = kind()
    aim = aimgraph.transform(base, _inputs(kind), verify="full")
    for train in (False, True):
        for batch in (2, 3):
            one, other = (copy.deepcopy(module).train(train)(*_inputs(kind, batch)) for module in (base, aim))
            assert all(map(torch.equal, tree_leaves(one), tree_leaves(other))), (train, batch)
    seen, expected = _backward(copy.deepcopy(aim), _inputs(kind)), _backward(copy.deepcopy(base), _inputs(kind))
    assert all(value is None or torch.equal(value, seen[name]) for name, value in expected.items())
    assert any(value is not None and value.any() for name, value in seen.items() if name.startswith("aim.memory.reads"))
    plan = aimgraph.plan(aim)
    assert plan.covered == sum(isinstance(part, nn.Linear) for part in base.modules())
    assert [note.partition(" (")[0] for note in plan.notes if "kept as one call" in note] == kept
    assert aimgraph.verify(base, aim).ok
    bare = aimgraph.fold(aim)(*_inputs(kind))
    for one, other in zip(tree_leaves(bare), tree_leaves(base.eval()(*_inputs(kind))), strict=True):
        torch.testing.assert_close(one, other)


def test_inputs_that_require_gradients_do_so_in_a_checkpoint(tmp_path: Any) -> None:
    base = _Residual()
    aimgraph.save(aimgraph.transform(base, _inputs(_Residual)), tmp_path / "saved")
    assert aimgraph.verify(base, aimgraph.load(tmp_path / "saved", base)).ok


def test_what_fails_with_gradients_too_is_refused() -> None:
    class Wrong(_Energy):
        def forward(self, x: Tensor) -> Tensor:
            return torch.autograd.grad(self.energy(x).sum(), x)[0]

    with pytest.raises(aimgraph.ExampleInputError, match="Wrong does not run on inputs"):
        aimgraph.transform(Wrong(), _inputs(Wrong))
