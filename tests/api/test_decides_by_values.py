"""Every public function, on models with a part that no fake tensor can run: the right value, or a refusal of ours."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph import AimgraphError, AimModule, ExportError
from aimgraph.api.to_source import imported
from tests.nets import randomise


class Codebook(nn.Module):
    """[B, 4, H, W]: each place becomes the nearest of six codes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(6, 4))
        self.codes: Tensor

    def forward(self, x: Tensor) -> Tensor:
        places = x.movedim(1, -1)
        index = torch.cdist(places.reshape(-1, 4), self.codes).argmin(1)
        if (index == 0).all():
            return x
        return x + (self.codes[index].reshape(places.shape).movedim(-1, 1) - x).detach()


class ActNorm(nn.Module):
    """[B, 4, H, W]: its first batch says what it shifts by and scales with."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.zeros(1, 4, 1, 1)), nn.Parameter(torch.ones(1, 4, 1, 1))
        self.register_buffer("ready", torch.tensor(0))
        self.ready: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.ready.item() == 0:
            with torch.no_grad():
                self.shift.copy_(-x.mean((0, 2, 3), keepdim=True))
                self.scale.copy_(1 / x.std((0, 2, 3), keepdim=True))
                self.ready.fill_(1)
        return self.scale * (x + self.shift)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2 if x.abs().max().item() > 0.5 else x


class Chosen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return x + flat[:, (flat.sum(0) > 0).nonzero().flatten()].sum()


class Distinct(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + len((x * 2).round().unique())


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.detach().numpy()))


class ByHeight(nn.Module):
    """Asks for values at sizes that the example does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2 if x.shape[2] > 8 and x.max() > 0 else x


PARTS = {kind.__name__: kind for kind in (Codebook, ActNorm, Branch, Chosen, Distinct, Numpy)}
X = torch.linspace(-2, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).sin() + torch.linspace(0, 1, 8)


@dataclass(frozen=True)
class Made:
    """A base, what the transform made of it, and a folder with a checkpoint of that."""

    base: nn.Module
    aim: AimModule
    folder: Path

    def gives(self, module: nn.Module) -> None:
        """See that a module gives what the transformed one does."""
        assert torch.equal(_run(module), _run(self.aim))

    def is_base(self, module: nn.Module) -> None:
        """See that a module gives what the base does."""
        assert torch.equal(_run(module), _run(self.base))


def _run(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(module).eval()(X)


def _net(part: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), part(), nn.Conv2d(4, 2, 3)).eval()


def _frozen(made: Made) -> None:
    found = []
    for lean in (False, True):
        aim = aimgraph.freeze_base(copy.deepcopy(made.aim), lean=lean)
        assert not aim.get_parameter("0.weight").requires_grad
        aim(X).square().sum().backward()
        grads = {name: one.grad for name, one in aim.named_parameters() if one.grad is not None}
        found.append(grads)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())


def _switched(made: Made) -> None:
    with aimgraph.disable_memory(made.aim):
        made.is_base(made.aim)
    made.gives(aimgraph.enable_memory(made.aim))


def _exported(made: Made) -> None:
    file = made.folder / "model.onnx"
    assert aimgraph.export_onnx(made.aim, file).relative_difference < 1e-4
    assert aimgraph.verify_onnx(file)


def _read(made: Made) -> None:
    other = aimgraph.transform(made.base, X)
    aimgraph.load_memory(other, made.folder)
    made.gives(other)


def _fixed(made: Made) -> None:
    aim = aimgraph.freeze_reads(copy.deepcopy(made.aim))
    assert [name for name, _ in aimgraph.trainable_parameters(aim) if ".reads." in name] == []
    made.gives(aim)


def _checked(made: Made) -> None:
    report = aimgraph.check_training(made.aim, lambda aim: aim(X).square().mean())
    assert len(report.never) < len(list(aimgraph.memory_parameters(made.aim)))


def _grouped(made: Made) -> None:
    groups = aimgraph.parameter_groups(made.aim, lr=1e-3)
    assert sum(len(group["params"]) for group in groups) == len(list(aimgraph.trainable_parameters(made.aim)))


def _written(made: Made) -> None:
    """What decides by values has no source; it is imported, if it can be made without arguments."""
    with pytest.raises(aimgraph.PlanError, match=r"^1 can't be traced, and what can't be has no source"):
        aimgraph.to_source(made.aim, made.folder / "source", X)
    part = type(made.base.get_submodule("1")).__name__
    report = aimgraph.to_source(made.aim, made.folder / "source", X, imports=True)
    assert report.imports == (f"{__name__}.{part}",)
    made.gives(imported(made.folder / "source").load())


def _shown(made: Made) -> None:
    page = aimgraph.report(made.aim, made.folder / "page.html", X)
    assert page.read_text().count("Conv2d") >= 2
    page.unlink()


def _widened(made: Made) -> None:
    """Some of these parts look at all channels together: then they stay, and that is said."""
    try:
        wide = aimgraph.widen(made.base, X, {"0": 3})
    except aimgraph.PlanError as error:
        assert "can't be widened: 0 (its channels stay" in str(error)  # noqa: PT017
        plan = aimgraph.widen_plan(made.base, X, parameters=2.0)
        assert plan.widened == plan.parameters
        return
    assert wide.get_parameter("0.weight").shape[0] == 7
    torch.testing.assert_close(_run(wide), _run(made.base))
    optimizer = torch.optim.SGD(made.base.parameters(), lr=0.1)
    assert isinstance(aimgraph.widen_optimizer(optimizer, wide), torch.optim.SGD)


CALLS: dict[str, Callable[[Made], None]] = {
    "check_training": _checked,
    "disable_memory": _switched,
    "draw": lambda made: aimgraph.draw(aimgraph.plan(made.base, X), made.folder / "plan.svg").unlink(),
    "enable_memory": _switched,
    "export_onnx": _exported,
    "fold": lambda made: made.gives(aimgraph.fold(made.aim)),
    "freeze_base": _frozen,
    "freeze_reads": _fixed,
    "load": lambda made: made.gives(aimgraph.load(made.folder, made.base)),
    "load_memory": _read,
    "memory_parameters": lambda made: _same(len(list(aimgraph.memory_parameters(made.aim))), 3),
    "parameter_groups": _grouped,
    "print_trainable_parameters": lambda made: _same(aimgraph.print_trainable_parameters(made.aim), None),
    "trainable_parameters": _grouped,
    "merge": lambda made: made.is_base(aimgraph.merge(made.aim, partial=True).model),
    "plan": lambda made: _same([site.path for site in aimgraph.plan(made.base, X).sites], ["0", "2"]),
    "refit": lambda made: made.gives(aimgraph.refit(made.aim)),
    "report": _shown,
    "save": lambda made: made.gives(aimgraph.load(aimgraph.save(made.aim, made.folder / "again"), made.base)),
    "skipped_writes": lambda made: _same(aimgraph.skipped_writes(made.aim), {}),
    "to_source": _written,
    "strip": lambda made: made.is_base(aimgraph.strip(made.aim)),
    "transform": lambda made: made.is_base(aimgraph.transform(made.base, X)),
    "widen": _widened,
    "widen_optimizer": _widened,
    "widen_plan": _widened,
    "verify": lambda made: _same(aimgraph.verify(made.base, made.aim, X).ok, True),
}
REFUSED = {
    "Codebook": r"; 1 \(Codebook\) can't be followed without values: .* at .*test_decides_by_values.py:\d+ in forward",
    "ActNorm": r"; 1 \(ActNorm\) can't be followed without values: .* in forward; let it compute with torch\.where",
    "Branch": r"; 1 \(Branch\) can't be followed without values",
}
"""What the exporter can't follow, and what is said of it."""


def _same(seen: object, expected: object) -> None:
    assert seen == expected


@pytest.fixture(scope="module", params=list(PARTS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    base = _net(PARTS[request.param])
    aim, folder = randomise(aimgraph.transform(base, X)).eval(), tmp_path_factory.mktemp(request.param)
    aimgraph.save(aim, folder)
    return Made(base, aim, folder)


def test_every_public_function_is_tried() -> None:
    functions = {name for name in aimgraph.__all__ if inspect.isfunction(getattr(aimgraph, name))}
    functions |= {"disable_memory"}  # a class, for ``with``
    assert functions - {"register", "verify_onnx"} == set(CALLS)  # `_exported` verifies what it writes


@pytest.mark.parametrize("name", list(CALLS))
def test_a_public_function_gives_the_right_value_or_refuses(name: str, made: Made) -> None:
    part = type(made.base.get_submodule("1")).__name__
    if CALLS[name] is _exported and part in REFUSED:
        with pytest.raises(ExportError, match=REFUSED[part]):
            aimgraph.export_onnx(made.aim, made.folder / "model.onnx")
        return
    before = {key: value.clone() for key, value in made.aim.state_dict().items()}
    CALLS[name](made)
    assert all(torch.equal(value, before[key]) for key, value in made.aim.state_dict().items())


def test_a_size_at_which_values_decide_can_be_folded_for() -> None:
    base, large = _net(ByHeight), torch.randn(1, 3, 12, 12)
    aim = randomise(aimgraph.transform(base, X)).eval()
    for sign in (large, -large):
        folded = aimgraph.fold(aim, sign)
        with torch.no_grad():
            assert torch.equal(folded(sign), aim(sign))


def test_a_size_that_the_model_does_not_take_is_refused_with_the_place() -> None:
    aim = aimgraph.transform(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), X)
    with pytest.raises(AimgraphError, match=r"does not run on one sample of inputs of shapes .*9, 9.* at 2; give"):
        aimgraph.fold(aim, torch.randn(2, 3, 9, 9))
