"""Every error that a transform can raise, its message, and the base afterwards."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

import aimgraph
from aimgraph import AimConfig, ConfigError, ExampleInputError, PassError, PlanError
from aimgraph.compiler.pipeline import Pipeline
from aimgraph.compiler.program import BasePass, PassResult, Program, Stage
from aimgraph.passes import PLANNING
from tests.nets import build
from tests.passes.helpers import program_for


class NeedsTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.mix(x) + y


def with_member(name: str, value: object) -> nn.Module:
    base = nn.Sequential(nn.Linear(3, 3))
    if isinstance(value, nn.Module):
        base.add_module(name, value)
    else:
        setattr(base, name, value)
    return base


X = torch.zeros(2, 3)

CASES: dict[str, tuple[nn.Module, object, dict[str, object], type[Exception], str]] = {
    "unknown option": (
        nn.Linear(3, 3),
        X,
        {"shap": (3,)},
        ConfigError,
        r"AimConfig shap=\(3,\): unknown option; the options",
    ),
    "bad shape": (nn.Linear(3, 3), X, {"shape": (3, 0, 1)}, ConfigError, r"AimConfig shape="),
    "carry without updates": (nn.Linear(3, 3), X, {"carry": "state"}, ConfigError, r"carry='state' needs updates"),
    "no memory": (nn.Linear(3, 3), X, {"config": []}, ConfigError, r"asks for no memory at all"),
    "same names": (nn.Linear(3, 3), X, {"config": [AimConfig(), AimConfig()]}, ConfigError, r"distinct names"),
    "not a config": (nn.Linear(3, 3), X, {"config": [{"name": "a"}]}, ConfigError, r"config holds a dict"),
    "concat in place": (nn.Linear(3, 3), X, {"inplace": True, "lowering": "concat"}, ConfigError, r"use \"split\""),
    "wrong features": (
        nn.Sequential(nn.Linear(4, 2)),
        X,
        {},
        ExampleInputError,
        r"does not run on inputs of shapes \[\[2, 3\]\] at batch size 2",
    ),
    "too few inputs": (
        NeedsTwo(),
        X,
        {},
        ExampleInputError,
        r"don't fit NeedsTwo.forward: missing a required argument: 'y'",
    ),
    "no tensor": (
        nn.Sequential(nn.Linear(3, 3)),
        (),
        {},
        ExampleInputError,
        r"hold no tensor with a batch dimension",
    ),
    "odd inputs": (nn.Sequential(nn.Linear(3, 3)), 3, {}, ExampleInputError, r"example_inputs is a int; give a tensor"),
    "not inferable": (NeedsTwo(), None, {}, ExampleInputError, r"its forward needs \['x', 'y'\]"),
    "nothing fits": (
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(7, 2)),
        None,
        {},
        ExampleInputError,
        r"Tried:\n  \[1, 3, 224, 224\]: (.|\n)*\[1, 3, 512, 512\]",
    ),
    "no such source": (
        nn.Sequential(nn.Linear(3, 3)),
        X,
        {"source": "zeros", "shape": (3,)},
        ConfigError,
        r"AimConfig source='zeros': there is no source of that name: use 'parameter', 'ones_conv' or 'coordinates'",
    ),
    "no such read": (
        nn.Sequential(nn.Linear(3, 3)),
        X,
        {"read": "resiz"},
        ConfigError,
        r"use 'reshape' or 'resize', or a factory, or register one with .*near misses: resize",
    ),
    "no such block": (
        nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)),
        X,
        {"updates": ("1",), "block": "lstm"},
        ConfigError,
        r"AimConfig block='lstm': there is no block of that name: use 'conv_sigmoid'",
    ),
    "block without updates": (nn.Linear(3, 3), X, {"block": "lstm"}, ConfigError, r"block='lstm' needs updates"),
    "source that solves no shape": (
        nn.Sequential(nn.Linear(3, 3)),
        X,
        {"source": nn.Identity},
        ConfigError,
        r"needs an explicit shape",
    ),
    "source of another size": (
        nn.Sequential(nn.Linear(3, 3)),
        X,
        {"source": lambda spec: nn.Embedding(1, spec.size), "shape": (3,)},
        ConfigError,
        r"memory 'memory': source <lambda>, made for SourceSpec\(shape=\(3,\)\): TypeError",
    ),
    "read of another rank": (
        nn.Sequential(nn.Linear(3, 3)),
        X,
        {"read": lambda spec: nn.Unflatten(1, (1, spec.size)), "shape": (4,)},
        ConfigError,
        r"from a memory \[1, 4\] it makes \[1, 1, 4\]; for the grid \[\] a read gives \[B, channels\]",
    ),
    "no layer": (nn.Sequential(nn.ReLU()), X, {}, PlanError, r"no convolution or linear layer"),
    "no such site": (nn.Sequential(nn.Linear(3, 3)), X, {"sites": "1"}, PlanError, r"'1' matches nothing"),
    "no such update": (
        nn.Sequential(nn.Linear(3, 3)),
        X,
        {"updates": ("7",)},
        PlanError,
        r"updates: '7' matches nothing",
    ),
    "data parallel": (
        DataParallel(nn.Linear(3, 3)),
        X,
        {},
        PlanError,
        r"wrapped in DataParallel: transform model\.module",
    ),
    "compiled": (
        torch.compile(nn.Linear(3, 3)),
        X,
        {},
        PlanError,
        r"the model \(OptimizedModule\) is compiled: transform model\._orig_mod",
    ),
    "scripted": (torch.jit.script(nn.Linear(3, 3)), X, {}, PlanError, r"scripted model"),
    "lazy": (
        nn.Sequential(nn.LazyLinear(3)),
        X,
        {},
        PlanError,
        r"0 \(LazyLinear\) has no shape yet: run the model once",
    ),
    "aim child": (with_member("aim", nn.ReLU()), X, {}, PlanError, r"member named 'aim'.*rename it"),
    "aim attribute": (with_member("aim", 3), X, {}, PlanError, r"member named 'aim'"),
    "graph child": (with_member("graph", nn.ReLU()), X, {}, PlanError, r"members named \['graph'\].*keeps for itself"),
    "code attribute": (with_member("code", "x"), X, {}, PlanError, r"members named \['code'\]"),
    "meta attribute": (with_member("meta", {}), X, {}, PlanError, r"members named \['meta'\]"),
    "transformed": (
        aimgraph.transform(nn.Sequential(nn.Linear(3, 3)), X),
        X,
        {},
        PlanError,
        r"the model is transformed already: use aimgraph\.strip",
    ),
    "transformed below": (
        nn.Sequential(aimgraph.transform(nn.Sequential(nn.Linear(3, 3)), X)),
        X,
        {},
        PlanError,
        r"its submodule '0' is transformed already",
    ),
}


def fingerprint(model: nn.Module) -> object:
    tensors = {
        name: value.clone()
        for name, value in model.state_dict().items()
        if not isinstance(value, nn.UninitializedParameter)
    }
    modes = [(name, module.training, sorted(vars(module))) for name, module in model.named_modules()]
    return tensors, modes, torch.get_rng_state()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_error_and_unchanged_base(case: str) -> None:
    base, inputs, options, kind, message = CASES[case]
    tensors, modes, rng = fingerprint(base)  # type: ignore[misc]
    with pytest.raises(kind, match=message) as caught:
        aimgraph.transform(base, inputs, **options)
    assert isinstance(caught.value, aimgraph.AimgraphError)
    after_tensors, after_modes, after_rng = fingerprint(base)  # type: ignore[misc]
    assert all(torch.equal(value, after_tensors[name]) for name, value in tensors.items())
    assert modes == after_modes
    assert torch.equal(rng, after_rng)


def test_plan_raises_the_same() -> None:
    with pytest.raises(PlanError, match="no convolution or linear layer"):
        aimgraph.plan(nn.Sequential(nn.ReLU()), X)


class _Broken(BasePass):
    """Does to a program what it is told to."""

    requires = Stage.ANALYSED

    def __init__(self, harm: object) -> None:
        self.harm = harm

    def run(self, program: Program) -> PassResult:
        self.harm(program)  # type: ignore[operator]
        return PassResult(program, True)


def _rename_input(program: Program) -> None:
    next(iter(program.graphs["both"].nodes)).target = "other"


def _lose_parameter(program: Program) -> None:
    del program.root.get_submodule("0").bias
    program.graphs["both"].find_nodes(op="call_module")[0].meta["touched"] = True


def _call_nothing(program: Program) -> None:
    program.graphs["both"].find_nodes(op="call_module")[0].target = "nowhere"


def _change_shape(program: Program) -> None:
    program.graphs["both"].find_nodes(op="call_module")[1].target = "flatten"
    program.root.add_module("flatten", nn.Flatten())


def _break_order(program: Program) -> None:
    nodes = program.graphs["both"].find_nodes(op="call_module")
    nodes[0].args = (nodes[1],)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_rename_input, r"_-broken: the inputs changed from \('input',\) to \('other',\) \(ran before: find-sites"),
        (_lose_parameter, r"names of the base changed: lost \['0\.bias'\]"),
        (_call_nothing, r"_0 calls nowhere, which does not exist"),
        (_change_shape, r"_1 gave \[2, 6, 6, 7\] before and gives \[2, 252\] now"),
        (_break_order, r"was used before it has been defined|before"),
        (
            lambda _: 1 / 0,
            r"failed: ZeroDivisionError: division by zero \(ran before: find-sites, place-updates, plan-memory\)",
        ),
    ],
)
def test_the_pipeline_catches_a_broken_pass(harm: object, message: str) -> None:
    program, _x = program_for("conv2d")
    with pytest.raises(PassError, match=message):
        Pipeline((*PLANNING, _Broken(harm))).run(program)


def test_a_pass_at_the_wrong_stage() -> None:
    program, _x = program_for("conv2d")
    with pytest.raises(PassError, match="plan-memory needs stage ANALYSED, the program is at TRACED"):
        Pipeline(PLANNING[2:]).run(program)


def test_a_failed_transform_leaves_no_trace_in_place() -> None:
    base, x = build("residual")
    before = copy.deepcopy(base.state_dict())
    ids = [id(p) for p in base.parameters()]
    with pytest.raises(PlanError):
        aimgraph.transform(base, x, inplace=True, sites="nope")
    assert ids == [id(p) for p in base.parameters()]
    assert all(torch.equal(value, base.state_dict()[key]) for key, value in before.items())


@pytest.mark.parametrize("inplace", [True, False])
def test_an_option_of_plan_that_does_nothing_is_said(inplace: bool) -> None:
    base, x = build("residual")
    with pytest.warns(UserWarning, match=r"plan\(inplace=\) does nothing"):
        warned = aimgraph.plan(base, x, inplace=inplace)
    assert warned == aimgraph.plan(base, x)
