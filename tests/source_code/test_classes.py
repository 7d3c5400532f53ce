"""Modules written as classes: what these compute, and how they read."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.api.to_source import imported, to_source
from aimgraph.errors import PlanError
from aimgraph.models_zoo.loader import load_model
from aimgraph.source_code.package import source_of
from aimgraph.source_code.subject import subject_of
from tests.widen.nets import NETS

NETWORKS = ["torchvision/resnet18", "timm/test_convnext", "timm/test_efficientnet", "timm/test_vit"]


def written(model: nn.Module, x: Tensor) -> str:
    return source_of(subject_of(model, ((x,), {}))).model


def made(model: nn.Module, x: Tensor, folder: Path) -> nn.Module:
    """The module that the source of a model gives."""
    to_source(model, folder / "source", x)
    module: nn.Module = imported(folder / "source").load()
    return module


def check_same(model: nn.Module, module: nn.Module, x: Tensor) -> None:
    for train in (False, True):
        outputs = []
        for one in (model, module):
            torch.manual_seed(0)
            outputs.append(one.train(train)(x))
        assert torch.equal(*outputs)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), module.state_dict().values(), strict=True)
    )


class Normed(nn.BatchNorm2d):
    """A norm of somebody else's: it is entered."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(super().forward(x)) * 2


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, padding=1), Normed(outputs)
        self.scale = nn.Parameter(torch.ones(outputs, 1, 1))
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)) * self.scale
        y += self.skip(x)
        return y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(Block(3, 4), Block(4, 4), Block(4, 4))
        self.extra = nn.ModuleDict({"a-b": nn.Linear(4, 3)})
        self.register_buffer("mean", torch.tensor(0.5))
        self.mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(x - self.mean)
        if self.training:
            x = x + torch.randn_like(x)
        return self.extra["a-b"](x.mean((2, 3)))  # type: ignore[no-any-return]


X = torch.randn(2, 3, 8, 8)


def test_blocks_norms_of_others_modes_and_names(tmp_path: Path) -> None:
    model = Net()
    check_same(model, made(model, X, tmp_path), X)


def test_it_reads_as_a_person_would_write_it() -> None:
    text = written(Net(), X)
    assert "self.stages = nn.Sequential(Block(3), *(Block(4) for _ in range(2)))" in text
    assert "class Block(nn.Module):\n    def __init__(self, inputs: int) -> None:" in text
    assert "self.skip = nn.Sequential(nn.Conv2d(inputs, 4, 1), nn.Dropout())" in text
    assert (
        """
    def forward(self, x):
        y = self.conv(x)  # [B, 4, 8, 8]
        y = self.norm(y)  # [B, 4, 8, 8]
        y = y * self.scale  # [B, 4, 8, 8]
        x = self.skip(x)  # [B, 4, 8, 8]
        y += x  # [B, 4, 8, 8]
        return y
"""
        in text
    )
    assert text.count("class Normed(nn.Module)") == 1
    assert "aimgraph" not in text


@pytest.mark.parametrize("name", [name for name in NETS if name not in ("weight norm", "tokens")])
def test_networks_in_which_channels_meet(name: str, tmp_path: Path) -> None:
    make, shape, _ = NETS[name]
    model, x = make(), torch.randn(3, *shape)
    check_same(model, made(model, x, tmp_path), x)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_libraries(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = load_model(name), torch.randn(2, 3, 160 if "test" in name else 64, 160 if "test" in name else 64)
    check_same(model, made(model, x, tmp_path), x)


def test_what_cannot_be_traced_is_refused() -> None:
    make, shape, _ = NETS["tokens"]  # its forward reads the number of samples off as a Python number
    with pytest.raises(PlanError, match=r"can't be traced, and what can't be has no source: the forward asks for len"):
        written(make(), torch.randn(3, *shape))


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_formatted_as_this_repository_is(name: str) -> None:
    text = written(load_model(name), torch.randn(2, 3, 160, 160))
    options = ["format", "--line-length", "120", "--stdin-filename", "model.py", "-"]
    command = [sys.executable, "-m", "ruff", *options]
    assert subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout == text


def test_functions_of_others_are_refused() -> None:
    def odd(x: Tensor) -> Tensor:
        return x * 2

    subject = subject_of(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), ((torch.randn(2, 3),), {}))
    for graph in subject.graphs.values():
        node = next(iter(graph.find_nodes(op="call_module", target="1")))
        node.op, node.target = "call_function", odd
    with pytest.raises(PlanError, match=r"odd is not a function of torch: it can't be written as source"):
        source_of(subject)
