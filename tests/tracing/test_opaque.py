"""What can't be traced is kept as one call, and its layers read inside it."""

import copy
import functools
import pickle
import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.compiler.aim_paths import AIM
from aimgraph.runtime.opaque import OpaqueBase
from tests.nets import randomise, run

X = torch.linspace(-1, 1, 2 * 3 * 6 * 5).reshape(2, 3, 6, 5)


class Gate(nn.Module):
    """Decides by the value of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.abs().max() > 1e-6:
            y = self.second(y)
        return torch.relu(y)


class Rounded(torch.autograd.Function):
    """Rounding whose gradient is three times that of the identity."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * 3


class Quantiser(nn.Module):
    """Calls a custom autograd function on what a layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return Rounded.apply(self.mix(x) * 4)


class Outer(nn.Module):
    """A part that can't be traced between two layers that can."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.stem, self.part, self.head = nn.Conv2d(3, 4, 3, padding=1), part, nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.stem(x)).mean((2, 3)))


class Root(nn.Module):
    """The model's own forward is what can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def double(self, y: Tensor) -> Tensor:  # type: ignore[override]
        return y * 2

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if x.max() > 100:
            x = x / 255
        y = self.stem(x)
        if self.training:
            y = y * 3
        return self.head(self.drop(y * 2).mean((2, 3)))


class ByType(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x * 2 if isinstance(x, Tensor) else x)


class LayerDrop(ByType):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and torch.rand([]) < 0.5 else self.mix(x)


class PythonLayerDrop(ByType):
    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and random.random() < 0.5 else self.mix(x)


class NumpyNoise(ByType):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) * float(np.random.rand())


class Parametrised(nn.Module):
    """A function call and a layer that is not affine, inside what can't be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.weight = nn.Conv2d(4, 4, 1), nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > -1e9:
            x = F.conv2d(x, self.weight)
        return self.mix(x)


class Averages(nn.Module):
    """Assigns a buffer anew instead of changing it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean((0, 2, 3))
        return y - self.mean[:, None, None]


class Auxiliary(nn.Module):
    """What can't be traced calls one layer in train mode only, one in eval mode only, and one twice in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.train_only, self.eval_only, self.both = (nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > -1e9:
            x = self.both(x)
        return self.train_only(x) if self.training else self.both(self.eval_only(x))


MODELS = {
    "auxiliary": lambda: Outer(Auxiliary()),
    "buffer": lambda: Outer(Averages()),
    "gate": lambda: Outer(Gate()),
    "autograd function": lambda: Outer(Quantiser()),
    "root": Root,
    "type": ByType,
    "layer drop": LayerDrop,
    "python's random": PythonLayerDrop,
    "numpy's random": NumpyNoise,
    "function inside": lambda: Outer(Parametrised()),
    "nested": lambda: Outer(nn.Sequential(Gate(), Gate())),
    "norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None)),
}


def seeded(module: nn.Module, x: Tensor, seed: int) -> Tensor:
    random.seed(seed), np.random.seed(seed)
    return run(module, x, seed=seed)


@pytest.mark.parametrize("name", MODELS)
def test_identity_copies_and_undo(name: str) -> None:
    torch.manual_seed(0)
    base = MODELS[name]()
    aim = aimgraph.transform(base, X, verify="full")
    assert aimgraph.plan(aim).covered >= 1
    for module in (aim, copy.deepcopy(aim), pickle.loads(pickle.dumps(aim))):
        for mode in (True, False, True):
            base.train(mode), module.train(mode)
            for seed in range(4):
                for sample in (X, torch.cat([X, X[:1]])):
                    one, other = copy.deepcopy(base), copy.deepcopy(module)
                    assert torch.equal(seeded(one, sample, seed), seeded(other, sample, seed))
                    assert all(torch.equal(value, other.get_buffer(key)) for key, value in one.named_buffers())
                    assert torch.equal(seeded(aimgraph.strip(other), sample, seed), seeded(one, sample, seed))
    result = aim.load_state_dict(base.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith(f"{AIM}.") for key in result.missing_keys)


def test_layers_inside_read_and_everything_is_listed() -> None:
    base = Outer(Gate())
    plan = aimgraph.plan(base, X)
    assert [(site.path, site.opaque) for site in plan.sites] == [
        ("stem", ""),
        ("part.first", "part"),
        ("part.second", "part"),
        ("head", ""),
    ]
    assert (plan.covered, len(plan.called), plan.fallback) == (4, 4, 2)
    assert {item.path: item.reason for item in plan.skipped} == {"part.unused": "never called in the forward pass"}
    assert "part (Gate) can't be traced and is kept as one call" in " ".join(str(plan).split())
    assert "test_opaque.py" in "".join(plan.notes)
    inside = aimgraph.plan(Outer(Parametrised()), X)
    assert (inside.covered, len(inside.called), inside.skipped) == (4, 4, ())


def test_a_layer_inside_reads_in_the_mode_that_calls_it() -> None:
    torch.manual_seed(0)
    base = Outer(Auxiliary())
    aim = aimgraph.transform(base, X, shape=(4, 6, 5), verify="full")
    plan = aimgraph.plan(aim)
    assert (plan.covered, len(plan.called), plan.skipped) == (5, 5, ())
    assert [len(site.calls) for site in plan.sites if site.path == "part.both"] == [2]
    randomise(aim)
    inside = {name for name in aim.state_dict() if ".part." in name and name.endswith("weight")}
    for mode, idle in ((True, "eval_only"), (False, "train_only")):
        aim.train(mode).zero_grad()
        run(aim, X).square().sum().backward()
        reached = {name for name, value in aim.named_parameters() if value.grad is not None and bool(value.grad.any())}
        read = {name for name in inside & reached if name.startswith(f"{AIM}.")}
        assert read == {name for name in inside if name.startswith(f"{AIM}.") and idle not in name}, mode


@pytest.mark.parametrize(("name", "updates"), [("gate", None), ("gate", "part"), ("root", None)])
def test_reads_inside_are_the_sums_they_should_be(name: str, updates: str | None) -> None:
    """The same sums, written as hooks on a copy of the base."""
    base = MODELS[name]().eval()
    options = {} if updates is None else {"updates": ("stem",)}
    aim = randomise(aimgraph.transform(base, X, shape=(6, 5, 2), **options)).eval()
    plan = aimgraph.plan(aim).memories[0]
    source = aim.get_submodule("aim.memory.source")()
    copied = copy.deepcopy(base)
    values = {0: source}

    def add(path: str) -> None:
        from aimgraph.runtime.reads.view import fit, read_view

        (read,) = [read for read in plan.reads if read.site == path]
        (call,) = {call.spec: call for call in read.calls}.values()
        layer = aim.get_submodule(f"aim.memory.reads.{read.name}")

        def hook(_: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
            view = fit(read_view(values[call.value], call.spec), args[0], call.spec.channel_axis, call.spec.batch_axis)
            out = out + layer(view)
            if path == "stem" and updates:
                values[1] = aim.get_submodule("aim.memory.updates.0")(values[0], out)
            return out

        copied.get_submodule(path).register_forward_hook(hook)

    for read in plan.reads:
        add(read.site)
    assert torch.allclose(aim(X), copied(X), atol=1e-5)
    assert not torch.allclose(aim(X), base(X), atol=1e-3)


def test_gradients_reach_every_read_weight_and_a_custom_backward_is_kept() -> None:
    for name in ("gate", "autograd function", "root"):
        base = MODELS[name]()
        aim = randomise(aimgraph.transform(base, X))
        run(aim, X).square().sum().backward()
        missing = [key for key, p in aim.get_submodule(AIM).named_parameters() if p.grad is None or not p.grad.any()]
        assert not missing, (name, missing)
    base = Outer(Quantiser())
    aim = aimgraph.transform(base, X)
    for module in (base, aim):
        module(X).sum().backward()
    assert torch.equal(base.stem.weight.grad, aim.get_submodule("stem").weight.grad)


def test_modes_and_a_frozen_base_reach_a_model_that_is_one_call() -> None:
    aim = aimgraph.transform(Root(), X)
    (whole,) = [module for module in aim.get_submodule(AIM).modules() if isinstance(module, OpaqueBase)]
    for module in (aim, copy.deepcopy(aim)):
        (whole,) = [m for m in module.get_submodule(AIM).modules() if isinstance(m, OpaqueBase)]
        assert whole.aim_borrowed[0].get_submodule("stem") is module.get_submodule("stem")
        module.eval()
        assert not whole.aim_borrowed[0].training
        module.train()
        assert whole.aim_borrowed[0].training
        aimgraph.freeze_base(module)
        assert not whole.aim_borrowed[0].training
    double = aim.double()
    assert double(X.double()).dtype == torch.float64


def test_threads_share_a_leaf() -> None:
    aim = randomise(aimgraph.transform(Outer(Gate()), X)).eval()
    expected, seen = aim(X), []
    threads = [threading.Thread(target=lambda: seen.append(aim(X))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert all(torch.equal(expected, y) for y in seen)
    assert "forward" not in vars(aim.get_submodule("part.first"))


def test_a_failure_inside_leaves_the_layers_as_they_were() -> None:
    aim = aimgraph.transform(Outer(Gate()), X)
    with pytest.raises(RuntimeError):
        aim.get_submodule("aim._opaque.part")([torch.zeros(1, 3)] * 2, torch.zeros(2, 7, 6, 5))
    assert not any("forward" in vars(module) for module in aim.modules())


def test_on_the_meta_device_there_are_no_values_to_decide_by() -> None:
    with torch.device("meta"):
        base = Outer(Gate())
    with pytest.raises(aimgraph.AimgraphError, match="no values to decide by"):
        aimgraph.transform(base, X.to("meta"))
    with torch.device("meta"):
        traced = aimgraph.plan(Outer(Quantiser()), X.to("meta"))
    assert traced.fallback == 1


def test_bad_inputs_are_still_bad_inputs() -> None:
    with pytest.raises(aimgraph.ExampleInputError, match="does not run on inputs of shapes"):
        aimgraph.transform(Outer(Gate()), torch.zeros(2, 7, 6, 5))


def test_a_decorated_forward_with_any_keywords_is_kept_as_one_call() -> None:
    def decorated(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(forward)
        def call(self: nn.Module, *args: object, **kwargs: object) -> Tensor:
            return forward(self, *args, **kwargs)

        return call

    class Decorated(ByType):
        @decorated
        def forward(self, x: Tensor, scale: float | None = None, **kwargs: object) -> Tensor:
            return self.mix(x) * (scale or 2.0)

    base = Decorated()
    aim = aimgraph.transform(base, X, verify="full")
    assert torch.equal(aim(X), base(X))
    assert aimgraph.plan(aim).covered == 1


class Recomputed(nn.Module):
    """Checkpoints a part of what can't be traced: its layers run again in the backward pass."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.second, self.reentrant = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), reentrant

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 1e6:
            return x
        if self.reentrant is None:
            return self._run(x)
        return torch.utils.checkpoint.checkpoint(self._run, x, use_reentrant=self.reentrant)

    def _run(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).sigmoid()).sigmoid()


@pytest.mark.parametrize("reentrant", [True, False])
def test_reads_below_a_checkpoint_are_made_again_in_the_backward_pass(reentrant: bool) -> None:
    torch.manual_seed(0)
    plain = aimgraph.transform(Outer(Recomputed(None)), X)
    randomise(plain)
    aim = aimgraph.transform(Outer(Recomputed(reentrant)), X)
    aim.load_state_dict(plain.state_dict())
    for module in (plain, aim):
        module(X).square().sum().backward()
        module(X + 1).square().sum().backward()
    assert torch.equal(aim(X), plain(X))
    gradients = {name: p.grad for name, p in aim.named_parameters()}
    for name, p in plain.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-6, atol=1e-7)


class Nested(nn.Module):
    """Its own forward can't be traced, and a part of it depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.head = Gate(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return Rounded.apply(self.head(self.part(x)))


def test_what_depends_on_values_inside_what_can_not_be_traced() -> None:
    base, x = Nested(), torch.randn(2, 4, 5, 5)
    aim = aimgraph.transform(base, x, verify="full")
    plan = aimgraph.plan(aim)
    assert (plan.covered, len(plan.called), plan.fallback) == (3, 3, 3)
    assert aimgraph.verify(base, aim).ok


class Anchors(nn.Module):
    """Keeps positions for the shape that it met last, and makes others, from values, where that changes."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.strides = nn.Conv2d(4, 4, 1), torch.tensor([2.0])
        self.shape: torch.Size | None = None
        self.positions = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x)
        if self.shape != x.shape:
            self.positions = torch.full((*x.shape[2:],), self.strides[0].item())
            self.shape = x.shape
        return x + self.positions


def test_what_a_module_remembers_of_a_batch_makes_only_that_module_one_call() -> None:
    base = Outer(Anchors())
    base(X)
    aim = aimgraph.transform(base, X, verify="full")
    plan = aimgraph.plan(aim)
    assert (plan.covered, plan.fallback) == (3, 1)
    for x in (X, X[:1], torch.cat([X, X])):
        assert torch.equal(aim(x), base(x))
    assert aimgraph.verify(base, aim).ok


class GoesOver(nn.Sequential):
    """Runs its children in order, and counts them."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(x)
            if x.abs().max() > 1e6:
                x = x.clamp(-1e6, 1e6)
        return x / len(self)


class LastOne(nn.Sequential):
    """Looks at its end, and at all of its modules and parameters."""

    def forward(self, x: Tensor) -> Tensor:
        norm = sum(parameter.square().sum() for parameter in self.parameters())
        x = self[-1](self[0](x)) / norm
        return x if x.max() > 1e6 else x * len(list(self.modules())) * len(dict(self.named_children()))


class Builds(nn.Module):
    """Puts a module into place at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if "act" not in self._modules:
            self.act = nn.Tanh()
        y = self.stem(x)
        return self.act(y) if y.max() < 1e6 else y


@pytest.mark.parametrize("kind", [GoesOver, LastOne, Builds])
@pytest.mark.parametrize("train", [False, True])
def test_a_model_that_is_one_call_has_the_children_that_it_had(kind: type[nn.Module], train: bool) -> None:
    parts = () if kind is Builds else (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    base = kind(*parts).train(train)
    aim = aimgraph.transform(base, X).train(train)
    assert torch.equal(aim(X), base(X))
    assert aimgraph.verify(base, aim).ok
    randomise(aim)
    assert not torch.equal(aim(X), base(X))
    for other in (copy.deepcopy(aim), pickle.loads(pickle.dumps(aim))):
        assert torch.equal(other(X), aim(X))
    assert torch.equal(aimgraph.strip(aim)(X), base(X))
    with aimgraph.disable_memory(aim):
        assert torch.equal(aim(X), base(X))
