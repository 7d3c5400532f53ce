"""Calls of functions read inside what can't be traced, as they do in a graph."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import aimgraph
from aimgraph.compiler.aim_paths import AIM
from aimgraph.emit.module import AimModule
from aimgraph.runtime.function_read import group_batch
from aimgraph.runtime.layer_kinds import FUNCTIONS
from aimgraph.runtime.reads.view import batch_mean, fit, read_view
from aimgraph.tracing.affine import classify_layers
from aimgraph.tracing.watch_calls import WatchCalls, names_in
from tests.nets import randomise


def asks(x: Tensor) -> None:
    """What no graph can hold."""
    if x.sum() > 1e9:
        raise ValueError("too much")


class Functions(nn.Module):
    """Two products with parameters around a layer, and a layer that is called without its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4, 6))
        self.mix, self.direct = nn.Linear(6, 6), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        asks(x)
        return self.direct.forward(F.linear(torch.tanh(self.mix(F.linear(x, self.first))), self.second))


class PerSample(nn.Module):
    """All samples are groups of one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(4, 3 * 4 * 9)

    def forward(self, x: Tensor) -> Tensor:
        asks(x)
        maps = x[:, :, None].expand(-1, -1, 5)[:, :, None, :].expand(-1, -1, 6, -1)
        batch = x.shape[0]
        weight = self.weights(x).reshape(batch * 3, 4, 3, 3)
        seen = F.conv2d(maps.reshape(1, batch * 4, 6, 5), weight, padding=1, groups=batch)
        return seen.reshape(batch, 3, 6, 5).mean((2, 3))


class Attention(nn.Module):
    """torch's decoder layer, whose forward is traced, inside a forward that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        asks(x)
        tokens = x[:, None] * torch.linspace(0.5, 2, 3)[:, None]
        return self.decoder(tokens, self.encoder(tokens))


class Checkpointed(Functions):
    """What runs once more in the backward pass is a part of a forward, between calls of the same function."""

    reentrant = False

    def forward(self, x: Tensor) -> Tensor:
        asks(x)

        def part(y: Tensor) -> Tensor:
            return F.linear(torch.tanh(F.linear(y, self.second)), self.first)

        hidden = checkpoint(part, F.linear(x, self.first), use_reentrant=self.reentrant)
        return F.linear(self.mix(hidden), self.second)


class Reentrant(Checkpointed):
    reentrant = True


class OpaqueBase(Functions):
    """The model's own forward can't be traced."""


PARTS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "functions": (Functions, 4),
    "per sample": (PerSample, 2),
    "attention": (Attention, 2 + 3 + 2 + 2 + 2),
    "checkpointed": (Checkpointed, 5),
    "reentrant": (Reentrant, 5),
}


def built(name: str) -> tuple[nn.Module, Tensor]:
    if name == "whole":
        return OpaqueBase(), torch.linspace(-1, 1, 8).reshape(2, 4)
    return nn.Sequential(nn.Linear(3, 4), PARTS[name][0]()), torch.linspace(-1, 1, 6).reshape(2, 3)


class ByHand(WatchCalls):
    """Adds the same reads to a copy of the base, by the names of its calls."""

    def __init__(self, base: nn.Module, aim: AimModule) -> None:
        super().__init__(names_in(base, classify_layers(base)))
        self.aim, (memory,) = aim, aimgraph.plan(aim).memories
        self.reads = {read.site: read for read in memory.reads}
        self.source = aim.get_submodule("aim.memory.source")()

    def called(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        out = super().called(name, function, args, kwargs)
        read = self.reads[name]
        layer, call = self.aim.get_submodule(f"aim.memory.reads.{read.name}"), read.calls[0]
        given = dict(zip(FUNCTIONS[function].arguments, args, strict=False)) | kwargs
        own = {key: value for key, value in given.items() if key not in ("input", "weight", "bias", "groups")}
        shown = read_view(batch_mean(self.source) if call.mean else self.source, call.spec)
        view = fit(shown, given["input"], call.spec.channel_axis, call.spec.batch_axis)
        with self.names.inside(None):
            term = getattr(F, function.__name__)(view, layer.weight, None, **own)
        return out + (group_batch(term, out) if call.grouped_batch else term)


@pytest.mark.parametrize("name", [*PARTS, "whole"])
def test_every_call_reads_and_the_sums_are_those_written_by_hand(name: str) -> None:
    base, x = built(name)
    aim = aimgraph.transform(base, x, shape=(5, 1, 1), verify="full")
    plan = aimgraph.plan(aim)
    expected = PARTS[name][1] + 1 if name in PARTS else 4
    assert (plan.covered, len(plan.called)) == (expected, expected)
    assert plan.fallback == expected - (name in PARTS)
    assert torch.equal(aim(x), base(x))
    assert aimgraph.verify(base, aim, x).ok
    randomise(aim)
    with ByHand(base, aim) as watch:
        sums = base(x)
    assert sum(watch.calls.counts.values()) == expected
    assert torch.allclose(aim(x), sums, atol=1e-5)
    assert not torch.allclose(aim(x), base(x), atol=1e-3)
    for other in (copy.deepcopy(aim), pickle.loads(pickle.dumps(aim))):
        assert torch.equal(other(x), aim(x))
    assert not any("_call_impl" in vars(module) or "forward" in vars(module) for module in aim.modules())


@pytest.mark.parametrize("name", [*PARTS, "whole"])
def test_gradients_are_those_written_by_hand(name: str) -> None:
    base, x = built(name)
    aim = randomise(aimgraph.transform(base, x, shape=(5, 1, 1)))
    aim(x).square().sum().backward()
    seen = {key: p.grad.clone() for key, p in aim.named_parameters() if p.grad is not None}
    assert {key for key, p in aim.named_parameters() if key.startswith(f"{AIM}.")} <= set(seen)
    plain = type(base)() if name == "whole" else nn.Sequential(base[0], copy.deepcopy(base[1]))
    if name in ("checkpointed", "reentrant"):  # by hand without: the names of calls start anew in the backward pass
        plain[1].forward = lambda y: _without_checkpoint(plain[1], y)  # type: ignore[method-assign]
    plain.load_state_dict(base.state_dict())
    aim.zero_grad()
    with ByHand(plain, aim):
        sums = plain(x)
    sums.square().sum().backward()
    for key, gradient in seen.items():
        other = (aim if key.startswith(f"{AIM}.") else plain).get_parameter(key).grad
        assert other is not None, key
        assert torch.allclose(gradient, other, atol=1e-4), key


def _without_checkpoint(part: Functions, x: Tensor) -> Tensor:
    asks(x)
    hidden = F.linear(torch.tanh(F.linear(F.linear(x, part.first), part.second)), part.first)
    return F.linear(part.mix(hidden), part.second)


def test_torchs_fused_attention_does_not_pass_the_reads_by() -> None:
    base, x = built("attention")
    aim = randomise(aimgraph.transform(base.eval(), x)).eval()
    expected = aim(x)
    with torch.inference_mode():
        assert torch.allclose(aim(x), expected, atol=1e-6)


class Turns(nn.Module):
    """The same call has weights of two shapes, by the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        asks(x)
        return F.linear(x, self.wide if self.training else self.narrow).sum(1)


def test_calls_with_weights_of_two_shapes_are_told() -> None:
    base = nn.Sequential(nn.Linear(3, 4), Turns())
    x = torch.linspace(-1, 1, 6).reshape(2, 3)
    aim = aimgraph.transform(base, x, verify="full")
    plan = aimgraph.plan(aim)
    ((path, why),) = plan.left.items()
    assert path == "1.linear_0"
    assert why == "called with weights of other shapes than [6, 4], too"
    assert not plan.skipped
    randomise(aim)
    for mode in (True, False):
        assert aim.train(mode)(x).shape == (2,)
    assert not torch.equal(aim.eval()(x), base.eval()(x))


class ByValue(nn.Module):
    """A value that the example does not have leads to a call of another shape in the place of a known one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.wide if x.sum() < 1e3 else self.narrow).sum(1)


def test_a_call_that_was_never_seen_does_not_read() -> None:
    base = nn.Sequential(nn.Identity(), ByValue())
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    aim = randomise(aimgraph.transform(base, x))
    assert not torch.equal(aim(x), base(x))
    assert torch.equal(aim(x + 1e4), base(x + 1e4))
