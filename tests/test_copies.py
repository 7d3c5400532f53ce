"""Models that keep results, or parts that run in inference mode: every copy of them, and what is made of copies."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from tests.nets import randomise

X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


class InBuffer(nn.Module):
    """A result in a buffer, which the next forward goes on from: a spiking network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("potential", torch.zeros(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.potential = 0.9 * self.potential.detach().mean() + self.conv(x)
        return self.potential.relu()


class InContainers(InBuffer):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.seen, self.last = [(y, 1)], {"y": y * 2}
        return y.relu()


class Inference(nn.Module):
    """A frozen backbone, whose features are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            self.features = self.conv(x)
        return self.head(self.features.clone().mean((2, 3)))


class InferenceOutput(Inference):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = super().forward(x)
        return y, self.features


class HoldsInference(InBuffer):
    """Tensors that were made in inference mode, as a buffer and as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        with torch.inference_mode():
            self.register_buffer("scale", torch.full((4, 1, 1), 2.0))
            self.shift = torch.ones(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.scale + self.shift


KINDS = [InBuffer, InContainers, Inference, InferenceOutput, HoldsInference]


def _run(module: nn.Module) -> list[Tensor]:
    given = copy.deepcopy(module)(X) if isinstance(module, aimgraph.AimModule) else module(X)
    return list(given) if isinstance(given, tuple) else [given]


def _same(one: list[Tensor], other: list[Tensor], tolerance: float = 0.0) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("ran", [False, True], ids=["new", "ran"])
@pytest.mark.parametrize("build", KINDS)
def test_what_is_made_of_it_has_its_values(build: Callable[[], nn.Module], ran: bool, tmp_path: Path) -> None:
    base = build().eval()
    if ran:
        with torch.set_grad_enabled(build is not HoldsInference):  # autograd saves no tensors of inference mode
            base(X)
    aim = randomise(aimgraph.transform(base, X))
    aim(X)
    expected = _run(aim)
    assert _same(_run(copy.deepcopy(aim)), expected)
    assert _same(_run(pickle.loads(pickle.dumps(aim))), expected)
    assert _same(_run(aimgraph.fold(aim)), expected, 1e-6)
    assert _same(_run(aimgraph.refit(aim)), expected)
    with aimgraph.disable_memory(copy.deepcopy(aim)) as plain:
        assert _same(_run(aimgraph.strip(aim)), _run(plain))
    fresh = randomise(aimgraph.transform(base, X))
    aimgraph.save(aim, tmp_path / "memory")
    assert _same(_run(aimgraph.load(tmp_path / "memory", base)), _run(fresh))
    report = aimgraph.verify(base, fresh, X)
    assert report.ok, str(report)


def test_a_copy_is_a_leaf_and_the_original_keeps_its_graph() -> None:
    aim = aimgraph.transform(InBuffer(), X)
    aim(X)
    other = copy.deepcopy(aim)
    assert torch.equal(other.potential, aim.potential)
    assert other.potential.is_leaf
    aim.potential.sum().backward()
    assert aim.conv.weight.grad.any()


def test_verify_reports_a_state_that_the_base_does_not_have() -> None:
    class Kept(InBuffer):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("potential", torch.zeros(1))

    base = Kept().eval()
    aim: Any = aimgraph.transform(base, X)
    aim(X)
    failed = {check.name: check.detail for check in aimgraph.verify(base, aim).checks if not check.ok}
    assert "size mismatch for potential" in failed["base checkpoints load"]
    assert failed["base weights are unchanged"] == "differ: ['potential']"
