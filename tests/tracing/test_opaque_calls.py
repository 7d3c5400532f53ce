"""Whose call it is that reads inside what can't be traced, where modules are shared, hidden, replaced or run twice."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import aimgraph
from aimgraph.compiler.aim_paths import AIM
from tests.nets import randomise

X = torch.linspace(-1, 1, 8).reshape(2, 4)


class Straight(torch.autograd.Function):
    """The identity, by a function that no graph keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Leaf(nn.Module):
    """Is kept as one call."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.own = nn.ModuleList(parts), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = Straight.apply(x)
        for part in self.parts:
            x = part(x)
        return self.own(torch.tanh(x))


class Product(nn.Module):
    """Calls a function."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.w)


class Sharing(nn.Module):
    """A layer or function that two leaves call, and the model itself."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self.first, self.second = Leaf(shared), Leaf(shared)
        self.shared = shared

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.shared(torch.sin(self.second(x)))


def plain(model: nn.Module) -> nn.Module:
    """The same model, in which nothing has to be one call."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Leaf):
            module.__class__ = Traceable
    return model


class Traceable(Leaf):
    """Does the same, and can be traced."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        for part in self.parts:
            x = part(x)
        return self.own(torch.tanh(x))


def same_memory(aim: nn.Module, other: nn.Module) -> None:
    """Give both the same memory: their read weights have the same names and shapes."""
    randomise(aim)
    values = {name: p for name, p in aim.named_parameters() if name.startswith(f"{AIM}.")}
    others = {name: p for name, p in other.named_parameters() if name.startswith(f"{AIM}.")}
    assert {name: p.shape for name, p in values.items()} == {name: p.shape for name, p in others.items()}
    for name, parameter in others.items():
        parameter.data.copy_(values[name])


@pytest.mark.parametrize(
    "shared", [lambda: nn.Linear(4, 4), Product, lambda: nn.Sequential(Product(), nn.Linear(4, 4))]
)
@pytest.mark.parametrize("options", [{}, {"source": "ones_conv", "shape": (2, 2, 1)}])
def test_shared_modules_read_wherever_they_are_called(shared: Any, options: Any) -> None:
    base = Sharing(shared())
    aim, other = aimgraph.transform(base, X, **options), aimgraph.transform(plain(base), X, **options)
    plan = aimgraph.plan(aim)
    assert (plan.covered, plan.fallback) == (len(plan.called), len(plan.called))
    assert len([item for item in plan.skipped if item.path in plan.called]) == 0
    same_memory(aim, other)
    for module in (aim, copy.deepcopy(aim), pickle.loads(pickle.dumps(aim))):
        assert torch.allclose(module(X), other(X), atol=1e-6)
    assert not torch.allclose(aim(X), base(X), atol=1e-3)


class Padding(nn.Conv2d):
    """Pads its input to a size of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias)


class Convolutions(Leaf):
    """Layers that hand another grid to the function than they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), Padding(4, 4, 3)])
        self.own = nn.Conv2d(4, 4, 3, padding=1)  # type: ignore[assignment]


def test_a_layer_that_pads_reads_on_the_grid_that_it_is_given() -> None:
    x = torch.linspace(-1, 1, 2 * 4 * 6 * 5).reshape(2, 4, 6, 5)
    base = nn.Sequential(Convolutions())
    aim = aimgraph.transform(base, x, shape=(6, 5, 2))
    free = copy.deepcopy(base)
    free[0].__class__ = type("Free", (Convolutions,), {"forward": Traceable.forward})
    other = aimgraph.transform(free, x, shape=(6, 5, 2))
    assert [read.grid for read in aimgraph.plan(aim).memories[0].reads] == [(6, 5)] * 3
    same_memory(aim, other)
    assert torch.allclose(aim(x), other(x), atol=1e-6)


class BothAxes(Leaf):
    """One layer over [B, T, F] and over [T, B, F]."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.own(Straight.apply(x)))
        return self.own(x.transpose(0, 1)).transpose(0, 1)


def test_samples_do_not_depend_on_their_place_in_the_batch() -> None:
    x = torch.linspace(-1, 1, 3 * 3 * 4).reshape(3, 3, 4)
    aim = randomise(aimgraph.transform(nn.Sequential(BothAxes()), x, shape=(3, 1, 2)))
    assert aimgraph.plan(aim).covered == 1
    assert torch.allclose(aim(x.flip(0)).flip(0), aim(x), atol=1e-6)
    assert not torch.allclose(aim(x), aimgraph.strip(aim)(x), atol=1e-3)


class Hidden(Leaf):
    """Calls a layer that no module owns before a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.w = [nn.Linear(4, 4)], nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.own(F.linear(torch.tanh(self.hidden[0](Straight.apply(x))), self.w))


def test_modules_that_nobody_owns_do_not_shift_the_numbers() -> None:
    base = nn.Sequential(Hidden())
    aim = aimgraph.transform(base, X, verify="full")
    assert aimgraph.plan(aim).called == ("0.linear_0", "0.linear_1", "0.own")
    randomise(aim)
    seen: list[tuple[str, Tensor]] = []
    leaf = aim.get_submodule("0")
    leaf.get_submodule("own").register_forward_pre_hook(lambda _, args: seen.append(("own", args[0])))
    leaf.hidden[0].register_forward_hook(lambda _, args, out: seen.append(("hidden", out)))  # type: ignore
    for idle in ("0.linear_0", "0.linear_1"):
        for name in ("0.linear_0", "0.linear_1"):
            aim.get_parameter(f"aim.memory.reads.{name}.weight").data.fill_(0.0 if name == idle else 1.0)
        aim(X), base(X)
    first, second = dict(seen[:2]), dict(seen[2:4])
    reads_second = first["own"] - F.linear(torch.tanh(first["hidden"]), leaf.w)  # type: ignore[arg-type]
    assert reads_second.abs().max() > 1e-4
    assert torch.allclose(second["own"], F.linear(torch.tanh(second["hidden"]), leaf.w), atol=1e-6)  # type: ignore


def test_a_part_put_in_the_place_of_another_is_the_one_that_runs() -> None:
    base = nn.Sequential(nn.Linear(4, 4), Leaf(nn.Linear(4, 4)))
    aim = randomise(aimgraph.transform(base, X))
    before = aim(X)
    aim.get_submodule("1").parts[0] = nn.Identity()  # type: ignore[index,operator]
    without = aim(X)
    assert not torch.equal(without, before)
    aim.add_module("1", nn.Identity())
    with aimgraph.disable_memory(aim):
        assert torch.equal(aim(X), aim.get_submodule("0")(X))
    assert not torch.equal(aim(X), without)


class Beside(nn.Module):
    """A layer of a leaf is called beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Leaf(nn.Linear(4, 4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x) + self.block.own(x))


@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_a_layer_inside_is_called_beside_it_as_well(lowering: str) -> None:
    base = Beside()
    options: dict[str, Any] = {"lowering": lowering, "updates": ("block",), "shape": (4,)}
    aim = aimgraph.transform(base, X, verify="full", **options)
    other = aimgraph.transform(plain(base), X, **options | {"lowering": "split"})
    assert aimgraph.plan(aim).covered == 3
    if lowering == "split":
        same_memory(aim, other)
        assert torch.allclose(aim(X), other(X), atol=1e-6)


class Experts(Leaf):
    """Which samples an expert sees depends on values; none, for some."""

    def __init__(self) -> None:
        super().__init__(*(nn.Linear(4, 4) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        chosen, out = self.own(x).argmax(-1), torch.zeros_like(x)
        for number, expert in enumerate(self.parts):
            at = (chosen == number).nonzero().squeeze(1) if x.dim() == 2 else None
            if at is not None:
                out = out.index_add(0, at, expert(x[at]))
        return out


@pytest.mark.parametrize("seed", range(8))
def test_experts_without_samples(seed: int) -> None:
    torch.manual_seed(seed)
    base = nn.Sequential(nn.Linear(4, 4), Experts())
    aim = randomise(aimgraph.transform(base, torch.randn(2, 4), verify="full"))
    for batch in (1, 2, 7):
        x = torch.randn(batch, 4)
        assert torch.allclose(torch.cat([aim(row) for row in x.split(1)]), aim(x), atol=1e-5)


def equal(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether there are two gradients, and they agree."""
    return one is not None and other is not None and torch.allclose(one, other, atol=1e-5)


class OwnCheckpoint(torch.autograd.Function):
    """Runs a module once more in the backward pass, as some libraries do by themselves."""

    @staticmethod
    def forward(ctx: Any, module: nn.Module, x: Tensor) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return module(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.module(x).backward(gradient)
        return None, x.grad


class OwnCheckpointed(Leaf):
    def forward(self, x: Tensor) -> Tensor:
        return self.own(OwnCheckpoint.apply(self.parts[0], x))


def test_what_a_custom_function_runs_does_not_read_and_its_gradients_stay_right() -> None:
    base = nn.Sequential(nn.Linear(4, 4), OwnCheckpointed(nn.Linear(4, 4)))
    aim = aimgraph.transform(base, X, verify="full")
    plan = aimgraph.plan(aim)
    assert (plan.covered, len(plan.called)) == (2, 3)
    assert "inside OwnCheckpoint.forward, whose own backward" in " ".join(str(plan).split())
    randomise(aim)
    aim(X).square().sum().backward()
    free = copy.deepcopy(aim)
    free.zero_grad()
    free.get_submodule("1").__class__ = type("Free", (OwnCheckpointed,), {"forward": lambda s, x: s.own(s.parts[0](x))})
    free(X).square().sum().backward()
    for (name, one), (_, other) in zip(aim.named_parameters(), free.named_parameters(), strict=True):
        if "reads.1.parts" not in name:
            assert equal(one.grad, other.grad), name


class Reentrant(Leaf):
    def forward(self, x: Tensor) -> Tensor:
        return self.own(checkpoint(self.parts[0], Straight.apply(x), use_reentrant=True))


@pytest.mark.parametrize(
    "options", [{"source": "ones_conv", "shape": (2, 2, 1)}, {"updates": ("0",), "shape": (4,), "carry": "state"}]
)
def test_a_reentrant_checkpoint_around_a_memory_that_is_computed(options: Any) -> None:
    base = nn.Sequential(nn.Linear(4, 4), Reentrant(nn.Linear(4, 4)))
    torch.manual_seed(0)
    aim = randomise(aimgraph.transform(base, X, **options))
    assert not any("checkpointing" in note for note in aimgraph.plan(aim).notes)  # inside one call it is kept
    free = copy.deepcopy(aim)
    free.get_submodule("1").__class__ = type(
        "Free", (Reentrant,), {"forward": lambda s, x: s.own(s.parts[0](Straight.apply(x)))}
    )
    for module in (aim, free):
        module(X).square().sum().backward()
    for (name, one), (_, other) in zip(aim.named_parameters(), free.named_parameters(), strict=True):
        assert equal(one.grad, other.grad), name


class Named(nn.Linear):
    """Calls its input by another name."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class ByKeyword(Leaf):
    def __init__(self) -> None:
        super().__init__(Named(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.own(input=self.parts[0](x=Straight.apply(x) if self.cut else x))

    cut = True


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_inputs_by_keyword(cut: bool, lowering: str) -> None:
    base = nn.Sequential(ByKeyword())
    base[0].cut = cut
    aim = aimgraph.transform(base, X, verify="full", lowering=lowering)
    assert aimgraph.plan(aim).covered == 2
    assert torch.allclose(aim(X), base(X), atol=1e-6)
    assert not torch.allclose(randomise(aim)(X), base(X), atol=1e-3)


def test_compiled_results_read_the_same() -> None:
    aim = randomise(aimgraph.transform(nn.Sequential(nn.Linear(4, 4), Leaf(Product())), X, sites="1.*"))
    compiled = torch.compile(aim, backend="eager")
    assert torch.allclose(compiled(X), aim(X), atol=1e-6)
    assert not torch.allclose(aim(X), aimgraph.strip(aim)(X), atol=1e-3)


def test_a_compiled_part_is_named() -> None:
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    base[1] = torch.compile(base[1], backend="eager")  # type: ignore[assignment]
    with pytest.raises(aimgraph.PlanError, match=r"its submodule '1' is compiled: .* with 1\._orig_mod in its place"):
        aimgraph.transform(base, X)


class Deciding(Leaf):
    """What it does depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() < 1e9 else -x)


@pytest.mark.parametrize("around", [Leaf, Deciding, nn.Sequential])
def test_scripted_parts_are_listed(around: type[nn.Module]) -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    base = nn.Sequential(nn.Linear(4, 4), around(scripted))
    plan = aimgraph.plan(base, X)
    (item,) = [item for item in plan.skipped if "scripted" in item.reason]
    assert item.path == ("1.0" if around is nn.Sequential else "1.parts.0")
    aim = aimgraph.transform(base, X)
    assert aimgraph.verify(base, aim).ok
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in aim.parameters())
    shared = aimgraph.transform(base, X, inplace=True)
    assert {id(p) for p in base.parameters()} < {id(p) for p in shared.parameters()}
