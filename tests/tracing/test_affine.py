"""Which layers read, and which calls of them."""

import copy
import functools
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.tracing.affine import classify
from tests.nets import Activated, SamePadding, Standardised, randomise, run
from tests.tracing.bases import Base, X


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
    first, second = aim.get_submodule("0"), aim.get_submodule("1")
    seen: list[Tensor] = []
    second.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    aim(x)
    output = first(x)
    read = seen[0] - output.detach()  # what the first layer reads is added behind its hooks
    first.register_forward_hook(lambda _m, _i, out: torch.sigmoid(out))
    aim(x).sum().backward()
    expected = torch.sigmoid(output) + read
    torch.testing.assert_close(seen[1], expected.detach())
    (gradient,) = torch.autograd.grad(second(expected).sum(), first.weight)
    torch.testing.assert_close(first.weight.grad, gradient)


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


@pytest.mark.parametrize(
    ("layer", "affine", "raw", "reason"),
    [
        (nn.Conv2d(3, 4, 3), True, False, ""),
        (nn.Linear(3, 4), True, False, ""),
        (nn.modules.linear.NonDynamicallyQuantizableLinear(3, 4), True, False, ""),
        (SamePadding(3, 4, 3), True, False, ""),
        (Standardised(3, 4, 3), True, True, ""),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), True, True, ""),
        (nn.utils.parametrizations.spectral_norm(nn.Conv1d(3, 4, 3)), True, True, ""),
        (Activated(3, 4, 3), False, False, "its own forward calls torch.relu on the input"),
    ],
)
def test_layer_kinds(layer: nn.Module, affine: bool, raw: bool, reason: str) -> None:
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    kind = classify(layer)  # type: ignore[arg-type]
    assert (kind.affine, kind.raw, kind.reason) == (affine, raw, reason)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


class _Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2)


class _Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x)


class _PadsWithOnes(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, (1, 1), value=1.0))


class _Fails(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no luck")


class _StandardisedAndPadded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1)), self.weight * 2, self.bias)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (_Scaled(3, 4), "mul"),
        (_Twice(3, 4), "add"),
        (_PadsWithOnes(3, 4, 3), "pad"),
        (_Fails(3, 4), "failed on a probe input: no luck"),
        (_StandardisedAndPadded(3, 4, 3), "transforms its weight and calls the layer with other arguments"),
    ],
)
def test_what_is_not_affine(layer: nn.Module, reason: str) -> None:
    kind = classify(layer)  # type: ignore[arg-type]
    assert not kind.affine
    assert reason in kind.reason


class _Conv(nn.Conv2d):
    """Goes on after the layer in place; subclasses say how."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.go_on(y)
        return y

    def go_on(self, y: Tensor) -> None:
        raise NotImplementedError


class _Relu(_Conv):
    def go_on(self, y: Tensor) -> None:
        nn.functional.relu_(y)


class _ReluInPlace(_Conv):
    def go_on(self, y: Tensor) -> None:
        nn.functional.relu(y, inplace=True)


class _Adds(_Conv):
    def go_on(self, y: Tensor) -> None:
        y += 1
        y *= y


class _SetsItem(_Conv):
    def go_on(self, y: Tensor) -> None:
        y[:, 0] = 0


class _SetsData(_Conv):
    def go_on(self, y: Tensor) -> None:
        y.data = torch.ones(y.shape)


class _ThroughView(_Conv):
    def go_on(self, y: Tensor) -> None:
        y[:, 1:].zero_()


class _InTrainMode(_Conv):
    def go_on(self, y: Tensor) -> None:
        if self.training:
            y.clamp_(0, 0.1)


class _DropsOut(_Conv):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(nn.Conv2d.forward(self, x), 0.5, self.training)


class _DoublesInput(_Conv):
    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous().mul_(x)
        return nn.Conv2d.forward(self, x)


_IN_PLACE = (*(_Relu, _ReluInPlace, _Adds, _SetsItem, _SetsData, _ThroughView, _InTrainMode, _DropsOut, _DoublesInput),)


@pytest.mark.parametrize("kind", _IN_PLACE)
@pytest.mark.parametrize("train", [False, True])
def test_a_layer_that_goes_on_in_place_is_entered(kind: type[_Conv], train: bool) -> None:
    base, x = nn.Sequential(kind(3, 4, 3), nn.Identity()).train(train), torch.randn(2, 3, 8, 8)
    split, concat = (aimgraph.transform(base, x.clone(), lowering=form) for form in ("split", "concat"))
    assert [site.path for site in aimgraph.plan(split).sites] == ["0.conv2d_0"]
    assert torch.equal(run(split, x.clone()), run(base, x.clone()))
    concat.load_state_dict(randomise(split).state_dict())
    for mode in (train, not train):
        outputs = [run(module.train(mode), x.clone()) for module in (split, concat)]
        torch.testing.assert_close(*outputs)


class _ClampsWeight(_Conv):
    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.clamp_(-0.1, 0.1)
        return nn.Conv2d.forward(self, x)


class _Counts(_Conv):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return nn.Conv2d.forward(self, x.contiguous()).contiguous()


@pytest.mark.parametrize(("kind", "raw"), [(_ClampsWeight, True), (_Counts, False)])
def test_a_layer_may_change_its_own_tensors_in_place(kind: type[_Conv], raw: bool) -> None:
    found = classify(kind(3, 4, 3))
    assert (found.affine, found.raw) == (True, raw)


class _Hook:
    """Replaces the forward of a module on the instance, as libraries that offload weights do."""

    def before(self, layer: Any, x: Tensor) -> Tensor:
        return x

    def after(self, layer: Any, y: Tensor) -> Tensor:
        return y

    def put_on(self, layer: Any) -> None:
        layer.former, layer.hook = layer.forward, self

        def forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
            args = tuple(layer.hook.before(layer, x) for x in args)
            return layer.hook.after(layer, layer.former(*args, **kwargs))

        layer.forward = functools.update_wrapper(functools.partial(forward, layer), layer.former)


class _Moves(_Hook):
    def before(self, layer: Any, x: Tensor) -> Tensor:
        return x.to("cpu")


class _Doubles(_Hook):
    def after(self, layer: Any, y: Tensor) -> Tensor:
        return y * 2


class _Offloads(_Hook):
    """Keeps the weights elsewhere between calls."""

    def put_on(self, layer: Any) -> None:
        super().put_on(layer)
        self.kept = {name: value.detach().clone() for name, value in layer.named_parameters()}
        self.after(layer, torch.ones(()))

    def before(self, layer: Any, x: Tensor) -> Tensor:
        layer._parameters.update({name: nn.Parameter(value) for name, value in self.kept.items()})
        return x

    def after(self, layer: Any, y: Tensor) -> Tensor:
        layer._parameters.update({name: nn.Parameter(value.to("meta")) for name, value in self.kept.items()})
        return y


def _forward_doubling_the_weight(layer: Any, x: Tensor) -> Tensor:
    return nn.functional.conv2d(x, layer.weight * 2, layer.bias)


def _conv_in_a_circle(layer: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1), "circular"), weight, bias)


class _Method(_Hook):
    def __init__(self, name: str, function: Any) -> None:
        self.name, self.function = name, function

    def put_on(self, layer: Any) -> None:
        setattr(layer, self.name, MethodType(self.function, layer))


@pytest.mark.parametrize("lowering", ["split", "concat"])
@pytest.mark.parametrize(
    ("hook", "sites"),
    [
        (_Hook(), ["0", "1.1"]),
        (_Moves(), ["0", "1.1"]),
        (_Doubles(), ["0.conv2d_0", "1.1"]),
        (_Method("forward", _forward_doubling_the_weight), ["0", "1.1"]),
        (_Method("_conv_forward", _conv_in_a_circle), ["0.conv2d_0", "1.1"]),
    ],
)
def test_a_layer_whose_forward_is_replaced_on_the_instance(hook: _Hook, sites: list[str], lowering: str) -> None:
    base = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(8, 4, 3))).eval()
    x = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
    hook.put_on(base[0])
    _Hook().put_on(base[1])
    aim = aimgraph.transform(base, x, lowering=lowering, verify="full")
    plan = aimgraph.plan(aim)
    assert ([site.path for site in plan.sites], plan.fallback) == (sites, 0)
    assert {"0"} - set(sites) == {item.path for item in plan.skipped}
    assert torch.equal(aim(x), base(x))
    assert torch.equal(aimgraph.strip(aim)(x), base(x))
    read = aim.get_parameter(f"aim.memory.reads.{sites[0]}.weight")
    nn.init.normal_(read)
    output = aim(x)
    assert not torch.allclose(output, base(x))
    if lowering == "split":
        torch.testing.assert_close(aimgraph.fold(aim)(x), output)
    copied = copy.deepcopy(aim)
    nn.init.zeros_(read)
    assert torch.equal(copied(x), output)
    assert torch.equal(aim(x), base(x))


def test_a_layer_whose_weight_is_offloaded_is_kept_and_listed() -> None:
    base, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval(), torch.ones(2, 3, 8, 8)
    _Offloads().put_on(base[2])
    aim = aimgraph.transform(base, x, verify="full")
    assert [site.path for site in aimgraph.plan(aim).sites] == ["0"]
    assert [item.path for item in aimgraph.plan(aim).skipped] == ["2"]
    assert "offload the result instead" in aimgraph.plan(aim).skipped[0].reason
    assert torch.equal(aim(x), base(x))
    _Offloads().put_on(base[0])
    with pytest.raises(aimgraph.PlanError, match="offload the result instead"):
        aimgraph.transform(base, x)
