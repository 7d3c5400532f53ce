"""Layers whose class has methods around its forward: a read layer has the forward alone."""

import copy
import io
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.runtime.read_layers import read_layer
from aimgraph.runtime.start import Start
from tests.nets import randomise


class Low(nn.Linear):
    """Adds B A to its weight in eval mode."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.a, self.b = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.b @ self.a)
            self.merged = not mode
        return self


class Entered(Low):
    """Low-rank terms as they are in loralib: merged in eval mode, and added in train mode."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if self.merged else y + x @ self.a.t() @ self.b.t()


class Told(nn.Linear):
    """Says what it holds."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.gain = nn.Parameter(torch.ones(1))

    def extra_repr(self) -> str:
        return f"gain={self.gain.item()}"

    def get_extra_state(self) -> Any:
        return {"gain": self.gain.item()}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"gain": self.gain.item()}


class Saved(nn.Linear):
    """Puts a buffer of its own under another name."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.seen: Tensor

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[no-untyped-call]
        destination[f"{prefix}note"] = self.seen.clone()

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        self.seen.copy_(state.pop(f"{prefix}note"))
        super()._load_from_state_dict(state, prefix, *args)  # type: ignore[no-untyped-call]


class Padded(nn.Linear):
    """Has a forward of its own, which can read, and makes its copies by itself; nothing may descend from it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.ones(1))

    def __init_subclass__(cls) -> None:
        raise TypeError("final")

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.pad(x, (0, 0)), self.weight, self.bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Padded":
        made = memo[id(self)] = Padded(self.in_features, self.out_features)
        made.load_state_dict(self.state_dict())
        made._parameters["weight"] = copy.deepcopy(self.weight, memo)
        made._parameters["bias"] = copy.deepcopy(self.bias, memo)
        return made.train(self.training)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        self.scale.data.mul_(1)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Self:
        self.scale.data.mul_(1)
        return super().train(mode)


X = torch.linspace(-1, 1, 32).reshape(4, 8)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("kind", [Low, Entered, Told, Saved, Padded])
def test_what_stands_around_a_forward_belongs_to_the_layer_alone(kind: Any, mode: bool) -> None:
    torch.manual_seed(0)
    base = nn.Sequential(kind(8, 6), nn.ReLU(), nn.Linear(6, 3)).train(mode)
    aim = aimgraph.transform(base, X)
    assert [site.path for site in aimgraph.plan(aim).sites][-1] == "2"
    for train in (not mode, mode):
        assert torch.equal(aim.train(train)(X), base.train(train)(X))
    assert aimgraph.verify(base, aim, X)
    assert kind.__name__ in str(randomise(aim))
    loaded, buffer = aimgraph.transform(base, X), io.BytesIO()
    loaded.load_state_dict(aim.state_dict())
    torch.save(aim, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(aim), loaded, torch.load(buffer, weights_only=False)):
        assert torch.equal(other.train(mode)(X), aim(X))
    assert torch.allclose(copy.deepcopy(aim).double()(X.double()), aim(X).double(), atol=1e-5)
    assert torch.allclose(aimgraph.fold(aim)(X), aim.eval()(X), atol=1e-6)


@pytest.mark.parametrize("kind", [Low, Padded])
def test_a_layer_that_may_set_its_weight_is_not_widened(kind: Any) -> None:
    base = nn.Sequential(kind(8, 6), nn.ReLU(), nn.Linear(6, 3)).train()
    aim = aimgraph.transform(base, X, lowering="concat")
    first, second = aimgraph.plan(aim).sites
    assert "of its own, which may set its weight" in first.split_only
    assert not second.split_only
    for train in (False, True):
        torch.testing.assert_close(aim.train(train)(X), base.train(train)(X))


def test_read_layers_of_one_class_have_one_class() -> None:
    layers = [read_layer(Padded(8, 6), 3, Start("drawn")) for _ in range(2)]
    assert type(layers[0]) is type(layers[1])
    assert isinstance(layers[0], Padded)
    assert (type(layers[0]).train, type(layers[0])._apply) == (nn.Module.train, nn.Module._apply)
