"""What a trace could silently drop or change: side effects, random draws, contexts, attributes."""

import copy
import functools
import math
import pickle
import random
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from tests.nets import randomise, run

X = torch.linspace(-1, 1, 12).reshape(3, 4)


class Base(nn.Module):
    """One linear layer and some buffers; subclasses say what happens around it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("std", torch.full((4,), 2.0))
        self.calls = 0
        self.last: object = None


class Counts(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return self.mix(x)


class Averages(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        if self.training:
            self.std.mul_(0.9).add_(0.1 * y.detach().mean(0))
        return y - self.std


class Scales(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x * (1 / self.std)[None, :])


class Noise(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) + torch.rand(1) + torch.zeros(4).normal_()


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


class Remembers(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.mix(x)
        return self.last * 2


class Checkpoints(Base):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.reentrant = nn.Linear(X.shape[-1], X.shape[-1]), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.mix, self.stem(x).relu(), use_reentrant=self.reentrant)


def states(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("kind", [Counts, Averages, Scales, Noise])
def test_buffers_and_draws_behave_as_in_the_base(kind: type[Base]) -> None:
    base = kind()
    aim = aimgraph.transform(base, X, verify="full")
    for mode in (True, False, True):
        base.train(mode), aim.train(mode)
        for seed in range(3):
            assert torch.equal(run(base, X, seed=seed), run(aim, X, seed=seed))
    for name, value in base.named_buffers():
        assert torch.equal(value, aim.get_buffer(name)), name
    assert aimgraph.verify(kind(), aimgraph.transform(kind(), X)).checks
    fresh = kind()
    assert aimgraph.verify(fresh, aimgraph.transform(fresh, X)).ok


@pytest.mark.parametrize("kind", [Counts, Averages, Noise, Remembers])
@pytest.mark.parametrize("inplace", [False, True])
def test_nothing_of_the_base_changes(kind: type[Base], inplace: bool) -> None:
    base = kind()
    before, rng = states(base), (torch.get_rng_state(), random.getstate())
    aimgraph.plan(base, X)
    aimgraph.transform(base, X, inplace=inplace)
    with pytest.raises(aimgraph.PlanError):
        aimgraph.transform(base, X, inplace=inplace, sites="nope")
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), rng[0])
    assert random.getstate() == rng[1]
    assert (base.calls, base.last) == (0, None)


@pytest.mark.parametrize("kind", [NoGrad, EnablesGrad, SetsGrad, Autocast, Infers])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_grad_modes_and_autocast_stay_where_they_are(kind: type[Base], grad: bool, autocast: bool) -> None:
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


def test_arithmetic_on_buffers_follows_a_loaded_checkpoint_and_a_move() -> None:
    base, other = Scales(), Scales()
    other.std.fill_(5.0)
    aim = aimgraph.transform(base, X)
    aim.load_state_dict(other.state_dict(), strict=False)
    assert torch.equal(aim(X), other(X))
    assert aim.bfloat16()(X.bfloat16()).dtype == torch.bfloat16
    assert vars(aimgraph.strip(aim)).keys() == vars(base).keys()


def test_random_states_are_as_before_a_look_at_the_base() -> None:
    class Draws(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x) * random.random() * float(np.random.rand()) * torch.rand(())

    base = Draws()
    rng = (torch.get_rng_state(), random.getstate(), str(np.random.get_state(legacy=False)))
    aimgraph.transform(base, X)
    assert torch.equal(torch.get_rng_state(), rng[0])
    assert random.getstate() == rng[1]
    assert str(np.random.get_state(legacy=False)) == rng[2]
    assert torch.is_grad_enabled()


def test_attributes_set_in_a_forward_are_noted_and_leak_nothing() -> None:
    aim = aimgraph.transform(Remembers(), X)
    notes = [note for note in aimgraph.plan(aim).notes if "the forward sets" in note]
    assert [note.split()[3].strip(",") for note in notes] == ["calls", "last"]
    assert (aim.calls, aim.last) == (0, None)
    assert torch.equal(pickle.loads(pickle.dumps(aim))(X), aim(X))


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


class _Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.mix(x), 0.5, self.training)


class _Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.back, self.plain, self.head = _Part(), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.plain(self.back(x)))


def test_a_part_in_another_mode_is_refused_where_it_matters() -> None:
    base = _Parts()
    aim = aimgraph.transform(base, X).train()
    aim.back.eval()
    with pytest.raises(aimgraph.TraceError, match=r"back is in eval mode and the model in train mode.*freeze_base"):
        aim(X)
    aim.back.train()
    aim.plain.eval()  # does not look at its mode
    assert torch.equal(run(aim, X), run(base.train(), X))
    aimgraph.freeze_base(aim).train()
    assert torch.equal(aim(X), base.eval()(X))
    assert torch.equal(copy.deepcopy(aim)(X), aim(X))
    with aimgraph.disable_memory(aim):
        assert torch.equal(aim(X), base(X))


@dataclass
class _Output(OrderedDict):  # type: ignore[type-arg]
    """A result that is a dictionary and has fields, as some libraries return."""

    logits: object = None
    hidden: object = None

    def __post_init__(self) -> None:
        self["logits"], self["hidden"] = self.logits, self.hidden

    def __getattr__(self, name: str) -> object:
        return self[name]


@pytest.mark.parametrize("kind", [OrderedDict, _Output, dict])
def test_kinds_of_output(kind: type) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> object:
            y = self.mix(x)
            if kind is _Output:
                return _Output(logits=y, hidden=x)
            return kind([("logits", y), ("hidden", x)])

    base = Net()
    output = aimgraph.transform(base, X)(X)
    assert type(output) is kind
    assert list(output) == ["logits", "hidden"]
    assert torch.equal(output["logits"], base(X)["logits"])


def test_flags_given_as_examples_are_constants() -> None:
    class Net(Base):
        def forward(self, x: Tensor, mask: Tensor | None, flag: bool = True, scale: float = 1.0) -> Tensor:
            y = self.mix(x) * scale
            y = y if mask is None else y * mask
            return y if flag else -y

    base = Net()
    aim = aimgraph.transform(base, ((X, None), {"flag": False, "scale": 2.0}))
    assert torch.equal(aim(X, None, flag=False, scale=3.0), base(X, None, flag=False, scale=3.0))
    with pytest.warns(UserWarning, match=r"'flag' was False in the example.*this call gives True.*forward of Net"):
        assert torch.equal(aim(X, None, flag=True, scale=2.0), base(X, None, flag=True, scale=2.0))
    with pytest.warns(UserWarning, match=r"'mask' was None in the example.*this call gives a Tensor"):
        assert torch.equal(aim(X, X, flag=False, scale=2.0), base(X, X, flag=False, scale=2.0))


class _Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        return self.mix(x) + position


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_an_input_whose_first_size_only_looks_like_the_batch(batch: int) -> None:
    base, x, position = _Positions(), torch.randn(batch, 5, 4), torch.randn(5, 4)
    aim = aimgraph.transform(base, (x, position))
    plan = aimgraph.plan(aim)
    assert plan.inputs == ((batch, 5, 4), (5, 4))
    assert plan.memories[0].reads[0].grid == (5,)
    assert torch.equal(aim(torch.cat([x, x]), position), base(torch.cat([x, x]), position))
    assert aimgraph.verify(base, aim).ok


def test_memories_with_the_same_seed_differ() -> None:
    configs = [aimgraph.AimConfig(name=name, shape=(6,), init="default") for name in ("u", "v")]
    aim = aimgraph.transform(nn.Sequential(nn.Linear(4, 4)), X, config=configs)
    assert not torch.equal(aim.get_parameter("aim.u.source.value"), aim.get_parameter("aim.v.source.value"))
    assert not torch.equal(aim.get_parameter("aim.u.reads.0.weight"), aim.get_parameter("aim.v.reads.0.weight"))


def test_a_layer_with_a_forward_hook_is_left_alone() -> None:
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    base[0].register_forward_hook(lambda _m, _i, out: torch.sigmoid(out))
    aim = randomise(aimgraph.transform(base, X))
    assert {s.path: s.reason for s in aimgraph.plan(aim).skipped} == {
        "0": "it has a forward hook, which may change its output: register it on the result instead"
    }
    aim(X).sum().backward()
    with aimgraph.disable_memory(aim):
        assert torch.equal(aim(X), base(X))


def test_a_forward_hook_registered_later_may_change_the_output() -> None:
    base = nn.Sequential(nn.Conv1d(4, 4, 1), nn.Conv1d(4, 2, 1))
    x = torch.randn(2, 4, 5)
    aim = randomise(aimgraph.transform(base, x))
    aim.get_submodule("0").register_forward_hook(lambda _m, _i, out: torch.sigmoid(out))
    aim(x).sum().backward()


@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_a_module_under_two_names(lowering: str) -> None:
    def build() -> nn.Module:
        block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        return nn.Sequential(block, block, nn.Conv2d(3, 2, 1))

    torch.manual_seed(0)
    base, other, x = build(), build(), torch.randn(2, 3, 6, 5)
    aim = aimgraph.transform(base, x, lowering=lowering, shape=(4, 4, 2))
    result = aim.load_state_dict(other.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith("aim.") for key in result.missing_keys)
    for key, value in other.state_dict().items():
        assert torch.equal(value, aim.state_dict()[key]), key
    assert torch.allclose(aim(x), other(x), atol=1e-6)
    twin = aimgraph.transform(base, x, lowering="split", shape=(4, 4, 2))
    twin.load_state_dict(randomise(aim).state_dict())
    assert torch.allclose(twin(x), aim(x), atol=1e-5)
    bare = aimgraph.strip(aim)
    assert bare[0] is bare[1]
    assert torch.equal(bare(x), other(x))


def test_names_that_the_emitted_module_needs_are_refused() -> None:
    for name in ("recompile", "_graph", "_record", "shape_env", "_deepcopy_hooks"):
        base = nn.Sequential(nn.Linear(4, 4))
        setattr(base, name, 1)
        with pytest.raises(aimgraph.PlanError, match=rf"members named \['{name}'\]"):
            aimgraph.transform(base, X)


def test_what_is_lost_is_listed() -> None:
    class Net(Base):
        @property
        def width(self) -> int:
            return 4

        def reset_memory(self) -> None: ...

        def __len__(self) -> int:
            return 1

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x)

    (note,) = [n for n in aimgraph.plan(aimgraph.transform(Net(), X)).notes if "lost" in n]
    assert note == "methods of Net that are lost: __len__, reset_memory, width"


def test_models_that_can_not_be_copied() -> None:
    import threading

    base = nn.Sequential(nn.Linear(4, 4))
    base.lock = threading.Lock()
    with pytest.raises(aimgraph.PlanError, match=r"Sequential can't be copied by copy\.deepcopy: cannot pickle"):
        aimgraph.transform(base, X)


def test_a_single_layer_needs_a_path() -> None:
    with pytest.raises(aimgraph.PlanError, match=r"the model is a single Linear: wrap it, torch\.nn\.Sequential"):
        aimgraph.transform(nn.Linear(4, 4), X)


def test_an_update_that_only_batch_free_layers_follow_is_dropped() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.position = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.mix(x))
            return y + self.position(self.mix.bias[None])

    memory = aimgraph.plan(Net(), X, updates=("mix",), shape=(3,)).memories[0]
    assert not memory.updates
    assert [item.path for item in memory.dropped] == ["mix"]


class ShapeFlow(Base):
    """Control flow over shapes, in every way that Python asks for a value."""

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        if x.dim() == 3 and c % 2 == 0 and len(x.shape) == 3 and t in (5, 6):
            x = x.reshape(b, -1, int(c))
        assert x.shape[-1] == 4, "four channels"
        parts = [self.mix(part) for part in x.unbind(1)]
        for i in range(t - 1):
            parts[i] = parts[i] + float(c) * i
        x = torch.stack(parts, 1)
        x[:, 0] = 0
        x[:, :, : c // 2] *= 2
        pair = x.chunk(2, dim=-1)
        table = torch.ones(t, c) + torch.zeros((t, 1)) + torch.full((1, c), 2.0)
        return torch.cat([*pair], -1) + torch.arange(t)[None, :, None] / max(t, 1) + table


def test_control_flow_over_shapes() -> None:
    base, x = ShapeFlow(), torch.randn(2, 5, 4)
    aim = aimgraph.transform(base, x, verify="full")
    for batch in (1, 2, 7):
        sample = torch.randn(batch, 5, 4)
        assert torch.equal(aim(sample), base(sample))
    plan = aimgraph.plan(aim)
    assert [(read.site, len(read.calls)) for read in plan.memories[0].reads] == [("mix", 5)]
    one, other = run(base.train(), x), run(aim.train(), x)
    one.sum().backward(), other.sum().backward()  # type: ignore[attr-defined]
    assert torch.equal(base.mix.weight.grad, aim.get_parameter("mix.weight").grad)


def test_a_size_that_no_example_batch_fits_is_an_error() -> None:
    class Fixed(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x).reshape(3, 2, 2)

    with pytest.raises(aimgraph.ExampleInputError, match=r"does not run on inputs .* at batch size 4"):
        aimgraph.transform(Fixed(), X)


def test_tracing_runs_nothing_real() -> None:
    """What a node gives is derived on fake copies: no module of the base is called, no buffer moves."""
    seen = []

    class Leaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(type(x).__name__)
            return self.norm(x)

    base = nn.Sequential(nn.Linear(4, 4), Leaf()).train()
    before = states(base)
    aimgraph.transform(base, X)
    assert set(seen) == {"FakeTensor"}
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in before.items())


class _KindOfInput(Base):
    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, torch.fx.Proxy):  # a shortcut for tracing, as some models have
            x = x * 2
        return self.mix(x)


class _KeyOfInput(Base):
    def forward(self, x: dict[str, Tensor]) -> Tensor:
        y = self.mix(x["x"])
        return y * 2 if type(x.get("scale", 1.0)) is float else y


class _ListInput(Base):
    def forward(self, x: list[Tensor]) -> Tensor:
        if type(x) in (list, tuple):
            x = [part * 2 for part in x]
        return self.mix(x[0])


class _OtherParameter(Base):
    """The same operation on a tensor of the same shape."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) * (self.std if type(x) is Tensor or "Fake" in type(x).__name__ else self.mix.bias)


class _OtherResult(Base):
    def forward(self, x: Tensor) -> Tensor:
        first, second = self.mix(x), x.sin()
        return first - second if type(x) is Tensor or "Fake" in type(x).__name__ else second - first


class _Keeps(nn.Module):
    kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x.sin()
        return x


class _StaleResult(Base):
    """What a part below kept of the last call; a trace sees what was kept before it."""

    def __init__(self) -> None:
        super().__init__()
        self.part = _Keeps()
        self.part.kept = X.cos()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.part(x)) * self.part.kept


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (_KindOfInput, (X,)),
        (_KeyOfInput, ({"x": X},)),
        (_ListInput, ([X, X],)),
        (_OtherParameter, (X,)),
        (_OtherResult, (X,)),
        (_StaleResult, (X,)),
    ],
)
def test_a_branch_that_a_stand_in_answers_wrongly(kind: type[Base], inputs: tuple[object, ...]) -> None:
    base = kind()
    aim = aimgraph.transform(base, inputs, verify="full")
    assert torch.equal(aim(*inputs), base(*inputs))
    plan = aimgraph.plan(aim)
    assert any("does not do what its forward does at batch size" in note for note in plan.notes)
    assert (plan.covered, plan.fallback) == (1, 1)


class _Centred(nn.Module):
    """Assigns a buffer at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = x.mean(0)
        return x - self.mean


class _Chooses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.one if random.random() < 0.5 else self.other)


@pytest.mark.parametrize("part", [_Centred, _Chooses])
def test_parts_that_are_calls_of_the_graph(part: type[nn.Module]) -> None:
    base = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(4, 4), part())), nn.Linear(4, 4))
    aim = aimgraph.transform(base, X)
    assert (aimgraph.plan(aim).covered, aimgraph.plan(aim).fallback) == (5, 0)
    outputs = []
    for module in (base, aim):
        random.seed(3)
        outputs.append(module(X))
    assert torch.equal(*outputs)


class _Attention(Base):
    """Takes tensors apart as most attention layers do, and goes through rows of inputs and parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.shifts = nn.Linear(4, 12), nn.Parameter(torch.randn(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, 2, 2).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) @ v).transpose(1, 2).reshape(batch, tokens, 4)
        for shift in self.shifts:
            y = y + shift
        first, *others = y.transpose(0, 1)
        return self.mix(y) + (first + sum(others)).unsqueeze(1)


def test_unpacked_tensors() -> None:
    base, x = _Attention(), torch.randn(2, 3, 4)
    aim = aimgraph.transform(base, x, verify="full")
    assert (aimgraph.plan(aim).covered, aimgraph.plan(aim).fallback) == (2, 0)
    assert aimgraph.verify(base, aim).ok
    with pytest.warns(UserWarning, match=r"len\(\)"):
        assert torch.equal(aim(torch.ones(2, 5, 4)), base(torch.ones(2, 5, 4)))


class _Accumulates(Base):
    """Goes on from what the call before has left."""

    def __init__(self) -> None:
        super().__init__()
        self.trace: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        if self.trace is None:
            self.trace = torch.zeros_like(x)
        self.trace = self.trace * 0.9 + y.detach()
        return y + self.trace


class _Alternates(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.mix(x) if self.calls % 2 else self.mix(x.relu())


class _Prepares(Base):
    """Keeps in eval mode what comes from parameters alone, as attention with position biases does."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Self:
        self.cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.mix(x) + self.std.sqrt()
        if "bias" not in self.cache:
            self.cache["bias"] = self.std.sqrt()
        return self.mix(x) + self.cache["bias"]


class _Counted(Base):
    """Sets attributes that decide nothing."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = y = self.mix(x)
        return y


@pytest.mark.parametrize(("part", "fallback"), [(_Accumulates, 1), (_Alternates, 1), (_Prepares, 0), (_Counted, 0)])
def test_what_a_forward_leaves_to_the_next(part: type[nn.Module], fallback: int) -> None:
    base = nn.Sequential(nn.Linear(4, 4), part())
    aim = aimgraph.transform(base, X)
    for number in range(3):
        for module in (base, aim):
            module.train(number < 2)
        assert torch.equal(run(aim, X), run(base, X))
    assert (aimgraph.plan(aim).covered, aimgraph.plan(aim).fallback) == (2, fallback)


class _AnyOrder(Base):
    """Goes through a set, whose order is another in each copy."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))

    def forward(self, x: Tensor) -> Tensor:
        for part in set(self.parts):
            x = x + part(x)
        return self.mix(x)


def test_a_set_of_layers() -> None:
    plan = aimgraph.plan(aimgraph.transform(_AnyOrder(), X))
    assert plan.covered == 10


class _Asks(Base):
    """Asks its inputs what they are, and gets the answers that it gets without a trace."""

    def forward(self, x: dict[str, Any]) -> Tensor:
        features = x["x"]
        asked = (
            isinstance(x, dict),
            isinstance(features, Tensor),
            torch.is_tensor(features),
            isinstance(features.shape, torch.Size),
            isinstance(features.shape[0], int),
            features.dim() in (2, 3),
            features.device.type in {"cpu", "cuda"},
            {torch.float32: True}[features.dtype],
            x.get("scale") is None,
            not hasattr(features, "logits"),
            hasattr(features, "view"),
            isinstance(self.mix.weight, nn.Parameter),
            not isinstance(features, nn.Parameter),
        )
        torch._check(features.shape[-1] > 1)
        return self.mix(features) * sum(asked)


def test_inputs_are_asked_what_they_are() -> None:
    base = _Asks()
    aim = aimgraph.transform(base, ({"x": X},), verify="full")
    assert torch.equal(aim({"x": X}), base({"x": X}))
    assert aimgraph.plan(aim).fallback == 0


class _Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.layers(x, src_key_padding_mask=mask)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_every_linear_function_of_masked_attention_reads(dtype: torch.dtype) -> None:
    base, x, mask = _Attends(), torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=dtype)
    aim = aimgraph.transform(base, (x, mask), verify="full")
    plan = aimgraph.plan(aim)
    assert (plan.covered, plan.fallback) == (8, 0)
    assert aimgraph.verify(base, aim).ok


_ACTIVATION = nn.GELU()


class _Borrowed(Base):
    """Calls a module that it does not hold."""

    def run(self, x: Tensor, *more: Tensor, scale: Tensor, **rest: Any) -> Tensor:
        return _ACTIVATION(self.mix(x)) * scale + sum(more) + sum(rest.values())


def _passing(forward: Any) -> Any:
    """A decorator whose wrapper has less arguments of its own than the forward."""

    @functools.wraps(forward)
    def passing(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return passing


class _Anything(_Borrowed):
    @_passing
    def forward(
        self, x: Tensor, *more: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32, **rest: Any
    ) -> Tensor:
        return self.run(x, *more, scale=scale, **rest).to(dtype)


def test_forwards_that_take_anything() -> None:
    base, given = _Anything(), {"scale": X + 1, "shift": X, "other": X * 2}
    aim = aimgraph.transform(base, ((X, X + 2, X), given), verify="full")
    assert torch.equal(aim(X + 1, X, X * 3, **given), base(X + 1, X, X * 3, **given))
    assert aimgraph.plan(aim).fallback == 0
    assert aimgraph.verify(base, aim).ok
    with pytest.warns(UserWarning, match="'shift' holds .* where it held Tensor in the example"):
        assert torch.equal(aim(X, X, X, scale=X, other=X), base(X, X, X, scale=X, other=X))
    with pytest.warns(UserWarning, match="'dtype' was left at its default"):
        seen = aim(X, X, X, **given, dtype=torch.float64)
    assert torch.equal(seen, base(X, X, X, **given, dtype=torch.float64))


class _PlainTensor(Base):
    """Adds a tensor that is neither parameter nor buffer, and takes the result apart by its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.arange(4.0)

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.mix(x) + self.shift.to(x.dtype)).chunk(2, dim=-1)
        return first * second


def test_sizes_are_known_behind_a_plain_tensor() -> None:
    base = _PlainTensor()
    aim = aimgraph.transform(base, X, verify="full")
    assert torch.equal(aim(X), base(X))
    assert aimgraph.plan(aim).fallback == 0


class _DecidesBySize(nn.Module):
    """Halves large images, and takes as many positions as the side of a square has."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        if y.shape[-1] > 16:
            y = F.avg_pool2d(y, 2)
        side = math.ceil(math.sqrt(y.shape[-1] * y.shape[-2]))
        return self.head(y.flatten(2)[:, :, :side].mean(2) + torch.zeros([y.shape[0], 1]))


def test_a_decision_by_size_is_asked_again() -> None:
    base = _DecidesBySize()
    aim = aimgraph.transform(base, torch.randn(2, 3, 8, 8), verify="full")
    for shape in [(1, 3, 8, 8), (7, 3, 9, 5), (2, 3, 16, 16)]:
        x = torch.randn(shape)
        assert torch.equal(aim(x), base(x))
    x = torch.randn(2, 3, 20, 20)
    with pytest.warns(UserWarning, match=r"gt\(.*, 16\) at test_faithful.*False; these make it True") as warned:
        assert all(torch.equal(aim(x), base(x)) for _ in range(2))
    assert len(warned) == 1
    assert aimgraph.plan(aim).fallback == 0


class _Pads(nn.Module):
    """A U-Net that pads what it has scaled up where that does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.low, self.up, self.head = nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor, values: Tensor | None = None) -> Tensor:
        skip = self.norm(self.down(x)).relu()
        y = self.up(F.pad(self.low(F.max_pool2d(skip, 2)), (1, 1, 1, 1)))
        rows, cols = skip.shape[-2] - y.shape[-2], skip.shape[-1] - y.shape[-1]
        if rows or cols:
            y = F.pad(y, (0, cols, 0, rows))
        return self.head(torch.cat([skip, y], 1) if values is None else torch.cat([skip, y + values], 1))


@pytest.mark.filterwarnings("ignore:the forward asks for:UserWarning", "ignore:the argument:UserWarning")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("example", [(13, 9), (16, 12)])
def test_sizes_that_lead_elsewhere(example: tuple[int, int], train: bool) -> None:
    base = _Pads().train(train)
    aim = aimgraph.transform(base, torch.randn(2, 3, *example))
    for number, size in enumerate([(13, 9), (16, 12), (13, 9), (20, 11), (16, 12)]):
        x = torch.randn(number % 3 + 1, 3, *size)
        assert torch.equal(aim(x), base(x))
        if number % 2:
            assert torch.equal(aim(x, values=x.new_ones(1)), base(x, values=x.new_ones(1)))
        buffers = dict(base.named_buffers())
        assert all(torch.equal(buffer, aim.get_buffer(name)) for name, buffer in buffers.items())
    # what is resampled anyway is the same at every size: the graph of one is compared with the forward of the other
    resized = {"shape": (3, 2, 2), "read": "resize", "init": "default"}
    made = [aimgraph.transform(base, torch.randn(2, 3, *size), **resized) for size in [(13, 9), (16, 12)]]
    made[1].load_state_dict(made[0].state_dict())
    for size in [(13, 9), (16, 12)]:
        outputs, gradients = [], []
        for module in map(copy.deepcopy, made):
            outputs.append(module(torch.linspace(-1, 1, 6 * size[0] * size[1]).reshape(2, 3, *size)))
            outputs[-1].square().sum().backward()
            gradients.append([parameter.grad for parameter in module.parameters()])
        assert torch.equal(*outputs)
        assert all(a is not None and torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    aim = randomise(aim)
    with aimgraph.disable_memory(aim):
        again = copy.deepcopy(base)
        again.load_state_dict(aimgraph.strip(aim).state_dict())
        x = torch.randn(2, 3, 16, 13)
        assert torch.equal(run(aim, x), run(again, x))


@pytest.mark.filterwarnings("ignore:the forward asks for:UserWarning")
def test_elsewhere_as_anywhere() -> None:
    """Frozen, copied, pickled, with other parameters, below a checkpoint, and with hooks."""
    base, x = _Pads(), torch.randn(2, 3, 16, 12)
    aim = randomise(aimgraph.transform(base, torch.randn(2, 3, 13, 9)))
    expected = run(copy.deepcopy(aim).eval(), x)
    frozen = aimgraph.freeze_base(copy.deepcopy(aim)).train()
    assert torch.equal(run(frozen, x), expected)
    run(frozen, x).sum().backward()
    assert {name for name, p in frozen.named_parameters() if p.grad is not None} == {
        name for name, _ in frozen.named_parameters() if name.startswith("aim.")
    }
    aim.eval()
    for other in (copy.deepcopy(aim), pickle.loads(pickle.dumps(aim))):
        assert torch.equal(run(other, x), expected)
    swapped = {name: parameter.detach() * 2 for name, parameter in aim.named_parameters()}
    twice = copy.deepcopy(aim)
    with torch.no_grad():
        for parameter in twice.parameters():
            parameter.mul_(2)
    assert torch.equal(torch.func.functional_call(aim, swapped, (x,)), run(twice, x))
    seen: list[str] = []
    aim.register_forward_hook(lambda *_: seen.append("once"))
    y = torch.utils.checkpoint.checkpoint(aim, x, use_reentrant=False)
    assert torch.equal(y, expected)
    assert seen == ["once"]
    y.square().sum().backward()
    direct = copy.deepcopy(aim)
    direct.zero_grad()
    run(direct, x).square().sum().backward()
    gradients = zip(aim.parameters(), direct.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in gradients if a.grad is not None or b.grad is not None)


@pytest.mark.parametrize("options", [{"lowering": "concat"}, {"updates": ("norm",)}])
def test_what_the_forward_itself_can_not_stand_in_for(options: dict[str, Any]) -> None:
    aim = aimgraph.transform(_Pads(), torch.randn(2, 3, 13, 9), **options)
    with pytest.raises(aimgraph.ExampleInputError, match=r"the truth of .* can't stand in for the graph here: it"):
        aim(torch.randn(2, 3, 16, 12))
    with aimgraph.disable_memory(aim):
        if aimgraph.plan(aim).memories[0].reads[0].lowering == "concat":
            with pytest.raises(aimgraph.ExampleInputError, match="the truth of"):
                aim(torch.randn(2, 3, 16, 12))
        else:
            with pytest.warns(UserWarning, match="the truth of"):
                assert aim(torch.randn(2, 3, 16, 12)).shape == (2, 2, 16, 12)


class _Structure(Base):
    """Loops over a list, asks a dict for a key and a number."""

    def forward(self, parts: list[Tensor], options: dict[str, int]) -> Tensor:
        x = sum(parts)
        if options.get("plain") is None:
            x = x * 2
        if options["shift"] > 1:
            x = x + 1
        return self.mix(x) * options["shift"]


def test_the_structure_of_inputs_is_asked_for_again() -> None:
    base = _Structure()
    aim = aimgraph.transform(base, ([X, X], {"shift": 3}), verify="full")
    for options in ({"shift": 3}, {"shift": 2}, {"shift": 3, "other": 1}):
        assert torch.equal(aim([X, X + 1], options), base([X, X + 1], options))
    for inputs in (([X], {"shift": 3}), ([X, X], {"shift": 1}), ([X, X], {"shift": 3, "plain": 1})):
        with pytest.warns(UserWarning, match="transform the model with example inputs of these"):
            assert torch.equal(aim(*inputs), base(*inputs))
    assert aimgraph.plan(aim).fallback == 0


class _DecidesByBatch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) * 2 if x.shape[0] == 1 else self.mix(x)


class _DecidesByGradient(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        return y * 2 if y.requires_grad else y


class _DecidesByGradMode(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) * 2 if torch.is_grad_enabled() else self.mix(x)


@pytest.mark.parametrize("kind", [_DecidesByBatch, _DecidesByGradient, _DecidesByGradMode])
@pytest.mark.parametrize("size", [1, 3])
def test_what_no_graph_can_decide_is_kept_as_one_call(kind: type[Base], size: int) -> None:
    base = kind()
    aim = aimgraph.transform(base, X[:size], verify="full")
    for x in (X[:1], X):
        assert torch.equal(aim(x), base(x))
        with torch.no_grad():
            assert torch.equal(aim(x), base(x))
    assert aimgraph.plan(aim).fallback == 1


class _Flattens(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x).view(int(x.shape[0]), -1)


class _RowByRow(Base):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(X.shape[-1], 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.mix(x[i : i + 1]) * (i + 1) for i in range(len(x))]))


class _Scales(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) * (2.0 if isinstance(x, Tensor) else 1.0)


@pytest.mark.parametrize("kind", [_Flattens, _RowByRow, _Scales])
def test_numbers_that_the_example_decides(kind: type[Base]) -> None:
    base = kind()
    aim = aimgraph.transform(base, X, verify="full")
    for rows in (1, 2, 7):
        x = torch.randn(rows, *X.shape[1:])
        assert torch.equal(aim(x), base(x))
    why = {item.path: item.reason for item in aimgraph.plan(aim).skipped}
    rows = {"mix": f"called {len(X)} times at one batch size and {len(X) + 1} times at another"}
    assert why == (rows if kind is _RowByRow else {})


class _Expert(nn.Module):
    def __init__(self, losses: list[Tensor]) -> None:
        super().__init__()
        self.losses, self.gate, self.mix = losses, nn.Linear(X.shape[-1], 4), nn.Linear(X.shape[-1], X.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).softmax(-1)
        self.losses.append(gate.var())
        return self.mix(x) * gate.amax(-1, keepdim=True)


class _Experts(nn.Module):
    """Modules that share a list."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.experts = nn.ModuleList(_Expert(self.losses) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.losses.clear()
        for expert in self.experts:
            x = expert(x)
        return x, sum(self.losses)


def test_a_list_that_modules_share() -> None:
    base = _Experts()
    aim = aimgraph.transform(base, X, verify="full")
    with torch.no_grad():
        assert all(map(torch.equal, aim(X), base(X)))


class _Widths(nn.Module):
    """Sets on itself what its parent looks at."""

    def forward(self, x: Tensor) -> Tensor:
        self.width = x.shape[-1]
        return x * 2


class _Looks(Base):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([_Widths(), _Widths()])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            part.width = 1
            x = part(x) / part.width
        return self.mix(x)


def test_what_a_module_sets_on_itself() -> None:
    base = _Looks()
    aim = aimgraph.transform(base, X, verify="full")
    assert torch.equal(aim(X), base(X))


def test_a_forward_replaced_on_the_instance_is_refused() -> None:
    base = nn.Sequential(nn.Linear(4, 4))
    base.forward = lambda x: x * 2
    with pytest.raises(aimgraph.PlanError, match=r"forward of this Sequential was replaced on the instance"):
        aimgraph.transform(base, X)


class _Collects(Base):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.named = [1], {"old": 2}

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        self.features.append(y)
        self.named["y"] = y
        return y


def test_containers_that_a_forward_changes_are_put_back() -> None:
    base = _Collects()
    aim = aimgraph.transform(base, X)
    assert (aim.features, aim.named) == ([1], {"old": 2})
    assert (base.features, base.named) == ([1], {"old": 2})
    assert [n for n in aimgraph.plan(aim).notes if "sets features" in n or "sets named" in n]
    pickle.dumps(aim)


class _TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(self.table(index))))


class _UsedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.head(self.mix(x)), self.mix.weight.t()) + self.mix.weight.square().mean()


@pytest.mark.parametrize(
    ("kind", "x", "site", "reason"),
    [
        (_TiedEmbedding, torch.zeros(2, 5, dtype=torch.long), "head", "its weight belongs to another module, too"),
        (_UsedWeight, X, "mix", "other code uses its weight, too"),
    ],
)
def test_weights_that_something_else_needs_are_not_widened(kind: type, x: Tensor, site: str, reason: str) -> None:
    base = kind()
    aim = aimgraph.transform(base, x, lowering="concat")
    reads = {read.site: (read.lowering, read.note) for read in aimgraph.plan(aim).memories[0].reads}
    assert reads.pop(site) == ("split", f"{reason}, so it can't be widened")
    functions = {name for name in reads if name.startswith("linear_")}
    assert {form for name, (form, _) in reads.items() if name not in functions} == {"concat"}
    assert {reads[name] for name in functions} <= {("split", "a function is called, there is no layer to widen")}
    assert torch.allclose(aim(x), base(x), atol=1e-6)
    bare = aimgraph.strip(aim)
    assert sum(p.numel() for p in bare.parameters()) == sum(p.numel() for p in base.parameters())


def test_spectral_norm_is_not_disturbed() -> None:
    base = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)).train()
    before = states(base)
    for inplace in (False, True):
        aim = aimgraph.transform(base, X, inplace=inplace)
        assert all(torch.equal(value, aim.state_dict()[name]) for name, value in before.items())
    aim = aimgraph.transform(base, X)
    for mode in (True, False):
        assert torch.equal(aim.train(mode)(X), base.train(mode)(X))


def test_children_of_a_layer_stay_out_of_the_memory() -> None:
    class WithChild(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.extra = nn.Linear(4, 4)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = WithChild()

        def forward(self, x: Tensor) -> Tensor:
            return self.a.extra(self.a(x))

    aim = aimgraph.transform(Net(), X, sites=("a",), shape=(3,))
    assert [k for k in aim.state_dict() if k.startswith("aim.")] == [
        "aim.memory.source.value",
        "aim.memory.reads.a.weight",
    ]


class _Renames(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_rename_old)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


def test_state_dict_hooks_of_the_base_are_kept() -> None:
    base = _Renames()
    old = {key.replace("mix", "old"): value for key, value in base.state_dict().items()}
    for lowering in ("split", "concat"):
        aim = aimgraph.transform(base, X, lowering=lowering)
        for module in (aim, copy.deepcopy(aim), pickle.loads(pickle.dumps(aim)), aimgraph.strip(aim)):
            result = module.load_state_dict(old, strict=False)
            assert not result.unexpected_keys
            assert all(key.startswith("aim.") for key in result.missing_keys)
        assert len(copy.deepcopy(copy.deepcopy(aim))._state_dict_hooks) == len(aim._state_dict_hooks)


def _rename_old(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for key in [key for key in state if "old" in key]:
        state[key.replace("old", "mix")] = state.pop(key)


class _OneMore(nn.Module):
    """The batch of the second layer is the model's plus one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.extra = nn.Linear(4, 4), nn.Linear(4, 3), nn.Parameter(torch.zeros(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cat([torch.relu(self.a(x)), self.extra], 0))


def test_a_batch_that_is_no_multiple_reads_the_batch_mean() -> None:
    base = _OneMore()
    aim = aimgraph.transform(base, X, updates=("a",), shape=(3,), verify="full")
    call = aimgraph.plan(aim).memories[0].reads[1].calls[0]
    assert (call.value, call.mean, call.note) == (1, True, "its batch is not the model's: reads the batch mean")
    assert torch.equal(aim(X), base(X))
    assert randomise(aim)(X).shape == (4, 3)


def test_random_states_are_put_back_after_a_failure() -> None:
    class Net(Base):
        def forward(self, x: Tensor) -> Tensor:
            random.random()
            return self.mix(x) if x.sum() > -1e9 else x

    before = random.getstate()
    with pytest.raises(aimgraph.AimgraphError, match="mat1 and mat2"):
        aimgraph.transform(Net(), X[:, :3])
    assert random.getstate() == before
    aimgraph.transform(Net(), X)
    assert random.getstate() == before
