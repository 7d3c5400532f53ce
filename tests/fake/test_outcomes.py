"""What was derived once is not derived again, and nobody can tell the difference."""

import copy
import gc
import weakref
from dataclasses import dataclass
from typing import Any, Self

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

import aimgraph
from aimgraph.compiler.node_keys import SHAPES
from aimgraph.compiler.program import Pass, Program
from aimgraph.copies import copy_module, paused_collection
from aimgraph.fake.faker import Faker
from aimgraph.fake.operations import Operation
from aimgraph.fake.outcomes import Derived
from aimgraph.fake.tensors import faked
from aimgraph.tracing.affine import classify_layers
from aimgraph.tracing.observe import observe
from aimgraph.tracing.trace import trace

X = torch.linspace(-1, 1, 2 * 4 * 6 * 5).reshape(2, 4, 6, 5)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


class Counting(nn.Conv2d):
    """Gives another shape at every second call."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = super().forward(x)
        return y if self.calls % 2 else y[:, :, :-1]


class Scaled(nn.Module):
    """Of the same type, with another setting."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.factor)


class Repeated(nn.Module):
    """Layers that look alike, and some of them are not."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.strided = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.hooked = nn.Conv2d(4, 4, 3, padding=1)
        self.hooked.register_forward_hook(lambda _m, _x, y: y[:, :, ::2])
        self.doubled = nn.Conv2d(4, 4, 3, padding=1)
        parametrize.register_parametrization(self.doubled, "weight", Doubled())
        self.counting = nn.ModuleList([Counting(4, 4, 1), Counting(4, 4, 1)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)])
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.scales = nn.ModuleList([Scaled(1), Scaled(2)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.same, self.norms, strict=False):
            x = self.act(norm(layer(x))) + F.relu(x)
        x = x * 2 if self.training else self.same[3](x)
        x = self.drop(self.same[3](x).double().float())
        for scale in self.scales:
            x = scale(x)
        x = self.doubled(self.hooked(x)) + self.doubled(self.hooked(x))
        x = self.counting[1](self.counting[0](x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.strided(x)
        x = self.strided(x.float()) + self.strided(x.float()).sigmoid_()
        return self.head(x.flatten(2).transpose(1, 2))


def overwriters(node: fx.Node) -> list[str]:
    return list(map(str, node.meta.get("aim_overwritten_by", ())))


def program(base: nn.Module, monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[str, dict[str, list[object]]]:
    """The plan, and the shapes, strides and types that were derived for every node of every graph."""
    seen: dict[str, list[object]] = {}

    def watch(step: Pass, program: Program) -> None:
        for name, graph in program.graphs.items():
            seen[f"{step.name} {name}"] = [
                (node.format_node(), node.meta.get(SHAPES), value.stride(), value.dtype, overwriters(node))
                for node in graph.nodes
                if isinstance(value := node.meta.get("val"), Tensor)
            ]

    if monkeypatch is not None:
        monkeypatch.setattr(Derived, "key", lambda *_, **__: None)
    return str(aimgraph.plan(aimgraph.transform(base, X, watch=[watch]))), seen


def test_the_program_is_the_one_that_is_derived_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Repeated()
    recalled = program(base)
    assert {"find-sites train", "find-sites eval"} <= set(recalled[1])
    assert recalled == program(base, monkeypatch)


class Same(nn.Module):
    """The same operations on other tensors, or on the same tensor twice."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))
        self.scores = nn.ModuleList([Scores(), Scores(), Scores(), Scores()])
        self.scores[0].first = self.scores[0].second
        self.scores[2].first = self.scores[1].second
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.norm(x))
        x, y = torch.add(x, x) + torch.add(x, y), torch.add(y, y) - torch.add(y, x)
        x, y = torch.sub(x, y), torch.sub(y, x)
        for mix in self.mix:
            x = mix(x) + F.linear(y, mix.weight, mix.bias) + F.linear(y, self.mix[0].weight, mix.bias)
        for score in self.scores:
            x = score(x, y) + score(y, score.first) + score(score.second, x)
        return torch.cat([x, y, x]) + torch.cat([x, y, y])


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(2, 4, 6, 5)), nn.Parameter(torch.randn(2, 4, 6, 5))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * self.first - y * self.second).exp()


@pytest.mark.parametrize("base", [Repeated, Same])
def test_the_operations_take_the_tensors_that_they_take_step_by_step(
    base: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    recalled = operations(base())
    with monkeypatch.context() as patch:
        patch.setattr(Derived, "key", lambda *_, **__: None)
        assert recalled == operations(base())
    counted: list[Tensor | None] = []
    recall = Derived.recall

    def count(*args: Any, **kwargs: Any) -> Tensor | None:
        counted.append(recall(*args, **kwargs))
        return counted[-1]

    monkeypatch.setattr(Derived, "recall", count)
    assert recalled == operations(base())
    assert sum(found is not None for found in counted) > 10


def operations(base: nn.Module) -> list[list[Operation]]:
    """Of the forward, and of the graph, in both modes."""
    faker, kinds = Faker(base), classify_layers(base)
    observed = observe(faker, kinds, ((X,), {}))
    traced = trace(faker, kinds, ((X,), {}), in_train=observed["train"].operations)
    assert all(seen.error is None for seen in observed.values())
    for mode, found in traced.operations.items():
        assert found == observed[mode].operations
    return [seen.operations for seen in observed.values()]


class InPlace(nn.Module):
    """What is overwritten, or given back as it is: features, views of them, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(4))
        self.acts = nn.ModuleList([nn.ReLU(inplace=True), nn.Identity(), nn.Dropout(0.1), nn.ReLU(inplace=True)])
        self.register_buffer("seen", torch.zeros(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        for mix, act in zip(self.mix, self.acts, strict=True):
            y = mix(x)
            one, other = y[:, 1], y[:, :1].squeeze(1)
            one.add_(x[:, 0])
            one.add_(one)
            other.add_(one)
            x = act(F.dropout(y, 0.2, self.training)) + F.relu_(y) + y.contiguous().float()
            for offset in torch.zeros(6, 5), torch.ones(6, 5):
                offset.add_(2.0)
                offset.add_(x[0, 0])
                x = x + offset.add_(one[0])
            torch.add(x, y, out=x)
            self.seen.copy_(x[0, 0].detach())
            x.transpose_(2, 3).transpose_(2, 3)
        return x + self.seen


def test_what_is_overwritten_is_told_as_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    base = InPlace()
    recalled = program(base), program(base)
    assert recalled[0] == recalled[1] == program(base, monkeypatch)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Softplus())


def names(base: nn.Module) -> list[str]:
    """Of the operations that the forward in eval mode is made of."""
    return [operation.name for operation in observe(Faker(base), {}, ((X,), {}))["eval"].operations]


def test_another_model_is_derived_from_what_the_first_has_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    names(small())
    with monkeypatch.context() as patch:
        patch.setattr(Derived, "keep", lambda *_, **__: pytest.fail("derived again"))
        assert names(small())[-1] == "aten.softplus.default"
    monkeypatch.setattr(nn.Softplus, "forward", lambda _self, x: x.tanh())
    assert names(small())[-1] == "aten.tanh.default"


def test_what_users_write_is_derived_for_every_transform() -> None:
    class Changing(nn.Module):
        power = 2

        def forward(self, x: Tensor) -> Tensor:
            return x.pow(2) if Changing.power == 2 else x.exp()

    def base() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 1), Changing())

    assert names(base())[-1] == "aten.pow.Tensor_Scalar"
    Changing.power = 3
    assert names(base())[-1] == "aten.exp.default"


def test_settings_that_a_forward_changes_stay_its_own() -> None:
    class Sets(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            wide = torch.zeros(7, 4)
            torch.set_default_dtype(before)
            return x + wide.sum().to(x.dtype) + torch.zeros(7, 4).sum()

    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if torch.zeros(7, 4).dtype == torch.float64 else x

    for part in Sets(), Plain(), Sets():
        base = nn.Sequential(nn.Conv2d(4, 4, 1), part).eval()
        aim = aimgraph.transform(base, X)
        assert torch.equal(aim(X), base(X))


def test_nothing_keeps_a_model() -> None:
    base = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.ReLU())
    aimgraph.transform(base, X)
    layer = weakref.ref(base[0])
    del base
    gc.collect()
    assert layer() is None


def test_what_runs_on_values_is_given_values() -> None:
    class Drawn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if torch.rand(1) < 2 else x

    seen = observe(Faker(nn.Sequential(Drawn()), real=frozenset({"0"})), {}, ((X,), {}))
    assert [one.error for one in seen.values()] == [None, None]
    names(nn.Sequential(Drawn()))  # what the function gives there is fake
    seen = observe(Faker(nn.Sequential(Drawn()), real=frozenset({"0"})), {}, ((X,), {}))
    assert [one.error for one in seen.values()] == [None, None]


def test_what_depends_on_a_setting_of_torch_is_derived_under_each() -> None:
    class Counted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * (x > 0).sum((2, 3), keepdim=True).true_divide(3)

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

    base = Counted()

    def types() -> set[torch.dtype]:
        found: set[torch.dtype] = set()
        aimgraph.transform(base, X, watch=[lambda _, p: found.update(n.meta["val"].dtype for n in divided(p))])
        return found

    def divided(program: Program) -> list[fx.Node]:
        return [node for graph in program.graphs.values() for node in graph.nodes if node.target == "true_divide"]

    assert types() == {torch.float32}
    torch.set_default_dtype(torch.float64)
    try:
        assert types() == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


def test_fakes_of_plain_tensors_are_those_of_torch() -> None:
    base = torch.zeros(5)
    trained = nn.Parameter(torch.randn(3))
    trained.grad = torch.ones(3)
    shared = torch.zeros(7)
    tensors = [
        nn.Parameter(torch.randn(4, 3)),
        nn.Parameter(torch.zeros(2), requires_grad=False),
        nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)),
        *(base, base[1:3], base.detach()[1:3], trained, shared, shared.detach()),
        *(torch.zeros(()), torch.zeros(3, 2).t(), torch.zeros(2, dtype=torch.int64), torch.zeros(0, 3)),
    ]
    ours, theirs = (FakeTensorMode(allow_non_fake_inputs=True) for _ in range(2))
    fakes = faked(tensors, ours)
    storages = {}
    for tensor in tensors:
        fake, other = fakes[id(tensor)], theirs.from_tensor(tensor)
        assert isinstance(fake, nn.Parameter) == isinstance(other, nn.Parameter) == isinstance(tensor, nn.Parameter)
        for one in "requires_grad", "is_leaf", "shape", "dtype", "device":
            assert getattr(fake, one) == getattr(other, one)
        assert fake.stride() == other.stride() == tensor.stride()
        assert (fake.grad is None) == (other.grad is None)
        assert fake._is_view() == other._is_view()
        assert ours.from_tensor(tensor) is fake
        storages.setdefault(tensor.untyped_storage()._cdata, set()).add(fake.untyped_storage()._cdata)
    assert all(len(those) == 1 for those in storages.values())


@dataclass(frozen=True, slots=True)
class Setting:
    size: int


class Cache(dict[str, int]):
    limit = 3


def test_copies_are_copies() -> None:
    base = Repeated()
    base.act.setting, base.drop.cache, base.drop.seen = Setting(3), Cache(), []
    base.act.seen = base.drop.seen
    made = copy_module(base)
    assert (made.act.setting, type(made.drop.cache), made.drop.cache.limit) == (Setting(3), Cache, 3)
    assert made.act.seen is made.drop.seen is not base.drop.seen
    base.extra = {"kept": [1, 2]}
    base.act.register_forward_hook(lambda _m, _x, y: y)
    for made in (copy_module(base), copy.deepcopy(base)):
        assert {type(m) for m in made.modules()} == {type(m) for m in base.modules()}
        ours, theirs = set(map(id, made.modules())), set(map(id, base.modules()))
        assert not ours & theirs
        for path, part in base.named_modules():
            twin = made.get_submodule(path)
            assert list(vars(twin)) == list(vars(part))
            mutable = [k for k, v in vars(part).items() if isinstance(v, dict | list | set)]
            assert all(vars(twin)[key] is not vars(part)[key] for key in mutable)
        values = zip(made.state_dict().values(), base.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() for a, b in values)
        assert made.extra == base.extra
        assert made.extra["kept"] is not base.extra["kept"]
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    again = copy_module(nn.Sequential(tied, tied))
    assert again[0] is again[1]
    assert again[0][0].weight is again[0][1].weight
    assert again[0][0].weight is not tied[0].weight


class Sized(nn.Module):
    """Calls an operator of the user's, whose sizes can change between two transforms."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aimgraph_tests.sized(self.layer(x))
        return y


def test_operators_of_the_user_are_not_remembered_by_the_process() -> None:
    rows = [2]
    with torch.library._scoped_library("aimgraph_tests", "DEF") as library:
        library.define("sized(Tensor x) -> Tensor")
        library.impl("sized", lambda x: x[:, :, : rows[0]].clone(), "CompositeExplicitAutograd")
        for rows[0] in (2, 3):
            steps = program(Sized())[1]["find-sites both"]
            assert [shape for name, (shape, _), *_ in steps if "aimgraph_tests" in name] == [(2, 4, rows[0], 5)]


def test_the_collector_is_put_back() -> None:
    @paused_collection()
    def fails() -> None:
        assert not gc.isenabled()
        raise ValueError("inside")

    assert gc.isenabled()
    with pytest.raises(ValueError, match="inside"):
        fails()
    assert gc.isenabled()
    gc.disable()
    try:
        with paused_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


class KeepsItsNormInEval(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mix(x))


class Around(nn.Module):
    """One call around a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def test_a_norm_that_is_held_in_eval_is_another_key_than_one_in_train() -> None:
    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    for base in (KeepsItsNormInEval().train(), nn.Sequential(nn.Linear(4, 4), Around()).train()):
        aim = aimgraph.transform(base, x)
        assert aimgraph.plan(aim).fallback == 0
        assert torch.equal(aim(x), base(x))
        assert all(torch.equal(value, aim.get_buffer(name)) for name, value in base.named_buffers())
