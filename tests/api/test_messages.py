"""What is said where something is asked for that can't be done: the place, and what to do instead."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import aimgraph
from aimgraph.cli.main import cli
from aimgraph.errors import AimgraphError, ConfigError, ExampleInputError, PlanError
from aimgraph.models_zoo.loader import load_model

X = torch.linspace(-1, 1, 24).reshape(3, 8)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))


class Calls(nn.Module):
    """A layer, and something else."""

    def __init__(self, then: Callable[..., Tensor]) -> None:
        super().__init__()
        self.mix, self.then = nn.Linear(8, 4), then

    def forward(self, x: Tensor, more: Any = None) -> Tensor:
        return self.then(self.mix(x), x if more is None else more)


@dataclass
class Graph:
    """An object that holds a tensor."""

    x: Tensor


class Store:
    """Holds tensors by name, as that of a `Data` of PyTorch Geometric does."""

    def __init__(self, **tensors: Tensor) -> None:
        self._mapping = tensors


class Data:
    """Holds a store, as a `Data` of PyTorch Geometric does."""

    def __init__(self, x: Tensor) -> None:
        self._store = Store(x=x)


class Slotted:
    """Has no attributes but one."""

    __slots__ = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.x = x


def _needs_three(y: Tensor, x: Tensor) -> Tensor:
    if len(x) != 3:
        raise ValueError("three samples, please")
    return y


def _needs_order(y: Tensor, x: Tensor) -> Tensor:
    if not bool((x.diff(dim=1) >= 0).all()):
        raise ValueError("not in order")
    return y


WRONG: dict[str, tuple[Callable[[], Any], type[AimgraphError], str]] = {
    "one number for a shape": (
        lambda: aimgraph.AimConfig(shape=8),
        ConfigError,
        r"^AimConfig shape=8: give \"auto\", \(N,\) or \(rows, cols, channels\), of positive .* \(7, 7, 64\)$",
    ),
    "two": (
        lambda: aimgraph.AimConfig(shape=(4, 4)),
        ConfigError,
        r"^AimConfig shape=\(4, 4\): give \"auto\", \(N,\) or",
    ),
    "none": (lambda: aimgraph.AimConfig(shape=(0,)), ConfigError, r"^AimConfig shape=\(0,\): give \"auto\""),
    "a stage": (
        lambda: aimgraph.transform(mlp(), X, updates="stage"),
        ConfigError,
        r"^AimConfig updates='stage': give \"stages\", module paths or patterns in a tuple.*; did you mean 'stages'\?$",
    ),
    "a list of names": (
        lambda: aimgraph.AimConfig(sites=3),
        ConfigError,
        r"^AimConfig sites=3: give \"all\", a glob or \"re:...\" pattern",
    ),
    "a budget": (
        lambda: aimgraph.AimConfig(budget="x"),
        ConfigError,
        r"^AimConfig budget='x': give a finite number",
    ),
    "a rate": (lambda: aimgraph.AimConfig(rate=2), ConfigError, r"^AimConfig rate=2: give a number above 0, less than"),
    "a read": (
        lambda: aimgraph.AimConfig(read=3),
        ConfigError,
        r"^AimConfig read=3: give a registered name, or a factory of your own$",
    ),
    "a seed": (
        lambda: aimgraph.AimConfig(seed=-1),
        ConfigError,
        r"^AimConfig seed=-1: give a whole number, 0 or more$",
    ),
    "a name": (lambda: aimgraph.AimConfig(name=3), ConfigError, r"^AimConfig name=3: give a letter followed by"),
    "another start": (
        lambda: aimgraph.AimConfig(start="zeros"),
        ConfigError,
        r"^AimConfig start='zeros': give 'zero_reads', 'zero_values' or 'drawn'$",
    ),
    "a dict for a config": (
        lambda: aimgraph.transform(mlp(), X, config={"shape": (8,)}),
        ConfigError,
        r"config is a dict: give AimConfig\(\*\*config\), a list of such, or the options by themselves",
    ),
    "a name for a config": (
        lambda: aimgraph.plan(mlp(), X, config="article"),
        ConfigError,
        r"config is a str: give AimConfig\(\.\.\.\)",
    ),
    "a name for a model": (
        lambda: aimgraph.transform("resnet18", X),
        PlanError,
        r"this is a str; of a name, .*load_model\(\"torchvision/resnet18\"\).*aimgraph plan torchvision/resnet18",
    ),
    "a name without a library": (
        lambda: load_model("vgg16"),
        ExampleInputError,
        r"give zoo/NAME, torchvision/NAME.*; did you mean zoo/vgg16 or torchvision/vgg16",
    ),
    "a picture of a model": (
        lambda: aimgraph.draw(aimgraph.transform(mlp(), X), "x.png"),
        ConfigError,
        r"draw takes a plan, and this is a Sequential: give aimgraph\.plan\(model, example_inputs\), or aimgraph\.plan",
    ),
    "a picture as a page": (
        lambda: aimgraph.draw(aimgraph.plan(mlp(), X), "x.html"),
        ConfigError,
        r"x\.html: 'html' is no ending of a picture that can be written: use png, svg or pdf",
    ),
    "a file that is not there": (
        lambda: aimgraph.verify_onnx("nofile.onnx"),
        ConfigError,
        r"^nofile\.onnx: there is no such file$",
    ),
    "numbers of another type": (
        lambda: aimgraph.transform(nn.Sequential(nn.Conv1d(3, 4, 3)), X.double()[None]),
        ExampleInputError,
        r"\. The inputs are float64 and the parameters float32: give inputs of .*model\.to\(torch\.float64\)\)$",
    ),
    "an object": (
        lambda: aimgraph.transform(Calls(lambda y, x: y), Graph(X)),
        ExampleInputError,
        r"example_inputs is a Graph; .*an object is a positional input: \(data,\).*register_dataclass\(Graph\)",
    ),
    "an object that holds one": (
        lambda: aimgraph.transform(Calls(lambda y, x: y), (Data(X),)),
        ExampleInputError,
        r"no tensor with a batch dimension.*tensors in a Data can't be seen: .*register_pytree_node\(Data, \.\.\.\)",
    ),
    "an object without a dict": (
        lambda: aimgraph.plan(Calls(lambda y, x: y), Slotted(X)),
        ExampleInputError,
        r"an object is a positional input: \(data,\).*register_pytree_node\(Slotted, \.\.\.\)",
    ),
    "an object beside a tensor": (
        lambda: aimgraph.transform(Calls(lambda y, x: y + x._store._mapping["x"][:, :4]), (X, Data(X))),
        ExampleInputError,
        r"The tensors in a Data can't be seen: .*register_pytree_node\(Data, \.\.\.\)",
    ),
    "three samples only": (
        lambda: aimgraph.transform(Calls(_needs_three), X),
        ExampleInputError,
        r"does not run on inputs of shapes \[\[3, 8\]\] at batch size 4 \(the first .*: three samples, please.*"
        r"give two of them: example_batches=\(4, 8\)",
    ),
    "numbers that are in no order": (
        lambda: aimgraph.transform(Calls(_needs_order), torch.zeros(3, 8)),
        ExampleInputError,
        r"runs on the example inputs, but not on other numbers of the same kind.*: not in order",
    ),
    "a base that never runs": (
        lambda: aimgraph.transform(mlp(), X[:, :5]),
        ExampleInputError,
        r"Sequential does not run on inputs of shapes \[\[3, 5\]\] at batch size 3 \(the first dimension is taken as "
        r"the batch\): .*where the batch is another dimension than the first, transpose in a forward around it",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_said(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("draw", "zoo/mlp", "--out", "x.html"), "'html' is no ending of a picture"),
        (("verify", "nofile.onnx"), "nofile.onnx: there is no such file"),
        (("plan", "vgg16"), "did you mean zoo/vgg16"),
    ],
)
def test_the_command_line_says_it_before_any_work(command: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(cli, command)
    assert isinstance(result.exception, ConfigError | ExampleInputError)
    assert message in str(result.exception)
