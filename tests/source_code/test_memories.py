"""Memories in the source of a module: the same bits in both modes, gradients and states, with torch alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph import AimConfig, ConfigError, PlanError
from aimgraph.api.to_source import imported
from aimgraph.copies import copy_module
from aimgraph.models_zoo.loader import load_model
from aimgraph.zoo_check.source import source_problem
from tests.nets import randomise


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.ReLU())
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.drop(self.norm(self.conv(x))) + self.skip(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(Block(3, 8), Block(8, 8), Block(8, 8), Block(8, 8))
        self.shift = nn.Parameter(torch.randn(8, 4, 3, 3))
        self.register_buffer("mean", torch.randn(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.fc = nn.Linear(8, 8)
        self.head = nn.Linear(8, 8)
        self.head.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(x - self.mean)
        x = F.conv2d(x, self.shift, padding=1, groups=2)
        if self.training:
            x = x + torch.randn_like(x)
        return self.head(torch.relu(self.fc(x.mean((2, 3)))))  # type: ignore[no-any-return]


X = torch.randn(2, 3, 12, 12)


class Shown(nn.Module):
    """A read of its own: [B, N] as the same channels at every place."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.rows, self.cols = spec.grid if len(spec.grid) == 2 else (0, 0)
        self.scale = nn.Parameter(torch.randn(spec.size))

    def forward(self, memory: Tensor) -> Tensor:
        x = memory * self.scale
        return x[:, None, None].expand(-1, self.rows, self.cols, -1) if self.rows else x


class Mean(nn.Module):
    """A block of its own."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.features + spec.size, spec.size)

    def forward(self, memory: Tensor, features: Tensor) -> Tensor:
        return torch.tanh(self.layer(torch.cat([memory, features.flatten(2).mean(2)], 1)))


def transformed(**options: Any) -> aimgraph.AimModule:
    torch.manual_seed(0)
    made: aimgraph.AimModule = randomise(aimgraph.transform(Net(), X, **options))
    return made


def frozen() -> nn.Module:
    return aimgraph.freeze_base(transformed(updates=("stages.1", "stages.3.norm")))


def with_sets() -> nn.Module:
    aim = transformed()
    aim.add_memory_set("other")
    aim = randomise(aim)
    aim.use("other")
    return aim


def disabled() -> nn.Module:
    aim = transformed()
    aimgraph.disable_memory(aim)
    return aim


def within() -> nn.Module:
    torch.manual_seed(0)
    return randomise(aimgraph.transform(Net(), X, within="stages"))


MADE: dict[str, Callable[[], nn.Module]] = {
    "static": transformed,
    "fixed": lambda: transformed(trainable=False),
    "resampled": lambda: transformed(shape=(3, 3, 5), read="resize"),
    "written": lambda: transformed(updates=("stages.1", "stages.3.norm"), carry="state", mode="gated"),
    "written in eval mode": lambda: transformed(
        updates=("stages.1", "stages.3.norm"), carry="state", write_in_eval=True
    ),
    "one for the batch": lambda: transformed(updates=("stages.1", "stages.3.norm"), pool="batch", shape=(20,)),
    "blocks and reads of others": lambda: transformed(
        shape=(6,), updates=("stages.1", "stages.3.norm"), block=Mean, read=Shown
    ),
    "several": lambda: transformed(
        config=[AimConfig(name="a"), AimConfig(name="b", source="ones_conv", shape=(4, 4, 2))]
    ),
    "coordinates": lambda: transformed(source="coordinates", shape=(4, 4, 6)),
    "concat": lambda: transformed(lowering="concat"),
    "frozen": frozen,
    "sets": with_sets,
    "disabled": disabled,
    "folded": lambda: aimgraph.fold(transformed()),
    "folded norms": lambda: aimgraph.fold(transformed(updates=("stages.1", "stages.3.norm")), fuse_batchnorm=True),
    "stripped": lambda: aimgraph.strip(transformed()),
    "widened": lambda: aimgraph.widen(transformed(), X, parameters=1.5),
    "float64": lambda: transformed().double(),
}


@pytest.mark.parametrize("kind", MADE)
def test_the_same_bits_gradients_and_states(kind: str, tmp_path: Path) -> None:
    module = MADE[kind]()
    x = X.to(next(module.parameters()).dtype)
    report = aimgraph.to_source(module, tmp_path / "source", x)
    assert report.compared == ("eval", "train")
    theirs = imported(tmp_path / "source").load()
    ours = copy_module(module)
    names = same_at_first(ours, theirs)
    for train in (True, False, True):
        outputs = []
        for one in (ours, theirs):
            torch.manual_seed(1)
            outputs.append(one.train(train)(x))
        assert torch.equal(*outputs)
        for one, output in zip((ours, theirs), outputs, strict=True):
            one.zero_grad()
            if output.requires_grad:
                output.square().sum().backward()
                torch.optim.SGD([p for p in one.parameters() if p.requires_grad], 1e-3).step()
        for name, other in names.items():
            mine, its = tensor_of(ours, name), tensor_of(theirs, other)
            assert torch.equal(mine, its), (name, train)
            assert mine.requires_grad == its.requires_grad, name
            assert (mine.grad is None) == (its.grad is None), name
            assert mine.grad is None or torch.equal(mine.grad, its.grad), name  # type: ignore[arg-type]


def same_at_first(ours: nn.Module, theirs: nn.Module) -> dict[str, str]:
    """Names of the parameters and buffers of a module -> those in its source, told by their values, which are drawn."""
    found: dict[str, str] = {}
    mine = {**dict(ours.named_parameters()), **dict(ours.named_buffers())}
    for other, tensor in {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}.items():
        last = other.rpartition(".")[2]
        like = [
            name
            for name, one in mine.items()
            if torch.equal(one, tensor)
            and name not in found
            and (bool(tensor.unique().numel() > 1) or (name.rpartition(".")[2] == last and other in name))
        ]
        if tensor.unique().numel() > 1:
            assert like, other
        if like:
            found[like[0]] = other
    assert len(found) > 5
    return found


def tensor_of(module: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), last)
    return found


def test_parts_of_a_larger_model(tmp_path: Path) -> None:
    module = within()
    aimgraph.to_source(module, tmp_path / "source", X)
    theirs = imported(tmp_path / "source").load()
    for train in (False, True):
        outputs = []
        for one in (theirs, module):
            torch.manual_seed(1)
            outputs.append(one.train(train)(X))
        assert torch.equal(*outputs)


def test_other_sizes_than_the_example(tmp_path: Path) -> None:
    module = transformed().eval()
    aimgraph.to_source(module, tmp_path / "source")
    larger = torch.randn(3, 3, 17, 14)
    assert torch.equal(imported(tmp_path / "source").load()(larger), module(larger))


def test_torch_and_safetensors_are_all_that_it_needs() -> None:
    assert source_problem(transformed(updates=("stages.1", "stages.3.norm"), carry="state"), ((X,), {})) == ""


def test_it_reads_as_a_person_would_write_it(tmp_path: Path) -> None:
    aimgraph.to_source(transformed(), tmp_path / "source")
    text = (tmp_path / "source" / "model.py").read_text()
    assert "aimgraph" not in text
    assert (
        """
        self.conv = nn.Conv2d(inputs, 8, 3, padding=1)
        self.conv_read = nn.Conv2d(1, 8, 3, padding=1, bias=False)
"""
        in text
    )
    assert (
        """
        y = self.conv(x)  # [B, 8, 12, 12]
        y += self.conv_read(fit(view, x))  # [B, 8, 12, 12]
        y = self.norm(y)  # [B, 8, 12, 12]
"""
        in text
    )
    assert (
        """
        for stage in self.stages:
            x = stage(x, view2)  # [B, 8, 12, 12]
"""
        in text
    )
    assert "        self.head.weight = self.fc.weight\n" in text


@pytest.mark.parametrize("kind", ["static", "written", "several", "frozen"])
@pytest.mark.parametrize("name", ["net", "torchvision/resnet18"])
def test_it_is_formatted_as_this_repository_is(kind: str, name: str, tmp_path: Path) -> None:
    if name == "net":
        module = MADE[kind]()
    else:
        options: dict[str, Any] = {"static": {}, "written": {"updates": "stages", "carry": "state"}}.get(kind, {})
        module = aimgraph.transform(load_model(name), torch.randn(2, 3, 64, 64), **options)
        module = aimgraph.freeze_base(module) if kind == "frozen" else module
    aimgraph.to_source(module, tmp_path / "source", X if name == "net" else None)
    for file in ("model.py", "__init__.py"):
        text = (tmp_path / "source" / file).read_text()
        command = [sys.executable, "-m", "ruff", "format", "--line-length", "120", "--stdin-filename", file, "-"]
        assert subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout == text


class Odd(nn.Module):
    """Its forward decides by a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


def test_a_part_that_cannot_be_traced_is_refused_or_imported(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Odd(), nn.Conv2d(4, 2, 3))
    aim = randomise(aimgraph.transform(model, X))
    with pytest.raises(PlanError, match=r"^1 can't be traced, and what can't be has no source: .*imports=True"):
        aimgraph.to_source(aim, tmp_path / "source")
    assert list(tmp_path.iterdir()) == []
    report = aimgraph.to_source(aim, tmp_path / "source", imports=True)
    assert report.imports == (f"{__name__}.Odd",)
    assert f"imports {__name__}.Odd" in str(report)
    assert f"from {__name__} import Odd" in (tmp_path / "source" / "model.py").read_text()
    with torch.no_grad():
        assert torch.equal(imported(tmp_path / "source").load()(X), aim.eval()(X))


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    aim = transformed()
    with pytest.raises(ConfigError, match="a package of the name 'my-net' can't be imported"):
        aimgraph.to_source(aim, tmp_path / "my-net")
    for name in ("class", "queue", "torch"):
        with pytest.raises(ConfigError, match=f"the name '{name}' can't be imported, or hides another: rename it"):
            aimgraph.to_source(aim, tmp_path / name)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "there").touch()
    with pytest.raises(ConfigError, match="is not an empty folder"):
        aimgraph.to_source(aim, tmp_path / "full")
    assert [one.name for one in (tmp_path / "full").iterdir()] == ["there"]
    (tmp_path / "empty").mkdir()
    assert aimgraph.to_source(aim, tmp_path / "empty").lines > 50
