"""What a plan says of layers that no gradient comes back to, and what their read weights get in a backward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import checkpoint

import aimgraph
from tests.nets import randomise


class Net(nn.Module):
    """[B, 4], by two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("table", torch.linspace(-1, 1, 16).reshape(4, 4))
        self.table: Tensor


class UnderNoGrad(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.a(x)
        return self.b(y)


class Inference(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = self.a(x)
        return self.b(x) + y.clone()


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).detach())


class Data(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).data)


class Chosen(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(x) + self.table[self.a(x).argmax(1)]


class Compared(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(x) * (self.a(x) > 0)


class Rounded(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(x) + self.a(x).round()


class Unused(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.a(x)
        return self.b(x)


class Checkpointed(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint.checkpoint(self.a, x, use_reentrant=True)
        return self.b(y.detach())


class Function(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.b = nn.Parameter(torch.ones(4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.linear(x, self.weight).detach())


class Hidden(nn.Module):
    """Has no layers, and shows no operation that stops a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self._twice(x)

    def _twice(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2


class Decorated(nn.Module):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Inside(Net):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.part(self.a(x)))
        return y


class Teacher(nn.Module):
    """[B, 3, 8, 8]: what a student gives times what a teacher gives, which no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = (
            nn.Conv2d(3, 4, 3),
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        )

    @torch.no_grad()
    def _key(self, x: Tensor) -> Tensor:
        y: Tensor = self.teacher(x)
        return y.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x).mean((2, 3)) @ self._key(x).t()


class OneCall(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.a(x)
        return self.b(y * 2 if y.sum() > 1e9 else y)


class StraightThrough(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y + (y.round() - y).detach())


class InEval(Net):
    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y if self.training else y.detach())


class Several(Net):
    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"one": self.b(self.a(x).detach()), "more": [self.a(x)]}


class Written(Net):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(len(x), 8)
        out[:, :4] = self.a(x)
        out[:, 4:] = self.b(x)
        return out


class Values(nn.Module):
    """Runs on values while the base is looked at."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.abs().max() > 1e9 else x


class Frozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x))
        return y


X = torch.linspace(-1, 1, 12).sin().reshape(3, 4)
NETS: dict[str, tuple[Any, set[str]]] = {
    **{kind.__name__: (kind, {"a"}) for kind in (UnderNoGrad, Inference, Detached, Data, Chosen, Compared, Rounded)},
    **{kind.__name__: (kind, {"a"}) for kind in (Unused, Checkpointed, OneCall)},
    "function": (Function, {"linear_0"}),
    "inside a part": (lambda: Inside(Hidden()), {"a"}),
    "inside a decorated part": (lambda: Inside(Decorated()), {"a"}),
    "teacher": (Teacher, {"teacher.0", "teacher.2"}),
    **{kind.__name__: (kind, set()) for kind in (StraightThrough, InEval, Several, Written, Frozen)},
    "inside a part that runs on values": (lambda: Inside(Values()), set()),
}


def _with_gradient(aim: nn.Module, x: Tensor) -> set[str]:
    """The read weights that get a gradient in train or in eval mode."""
    found = set()
    for train in (True, False):
        aim.train(train).zero_grad()
        given = aim(x)
        leaves = given if isinstance(given, Tensor) else torch.stack([given["one"], *given["more"]])
        leaves.square().sum().backward()
        for key, weight in aim.named_parameters():
            if ".reads." in key and weight.grad is not None and weight.grad.any():
                found.add(key.partition(".reads.")[2].removesuffix(".weight"))
    return found


@pytest.mark.parametrize("name", list(NETS))
def test_read_weights_without_a_gradient_are_told(name: str) -> None:
    build, untrained = NETS[name]
    torch.manual_seed(0)
    base = build()
    x = torch.randn(2, 3, 8, 8) if isinstance(base, Teacher) else X
    aim = randomise(aimgraph.transform(base, x))
    plan = aimgraph.plan(aim)
    reads = {read.name: read.gradient for _, read in plan.reads}
    assert {name for name, gradient in reads.items() if not gradient} == untrained
    assert {site.path for site in plan.sites if not site.gradient} == untrained
    assert _with_gradient(aim, x) == set(reads) - untrained
    assert ("gets no gradient" in str(plan)) == bool(untrained)


def test_what_is_written_to_a_memory_may_get_a_gradient_from_there() -> None:
    """The output of `a` goes nowhere but into the memory, which `b` reads."""
    base = Unused()
    aim = randomise(aimgraph.transform(base, X, updates=("a",), shape=(4,)))
    assert all(read.gradient for _, read in aimgraph.plan(aim).reads)
    assert "a" in _with_gradient(aim, X)


def test_a_network_that_stops_no_gradient_is_not_run_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("aimgraph.tracing.gradients._Probes", run)
    for base, x in ((nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout()), X), (Frozen(), X)):
        assert all(read.gradient for _, read in aimgraph.plan(base, x).reads)
