"""Kinds of models against everything that is done with one: the right value, or an error that says what to do.

A function of ours that can't do it raises an `AimgraphError`; where one of torch's fails, it fails on the base, too.
"""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, fx, nn

import aimgraph
from tests.marks import mostly_slow
from tests.nets import randomise


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.mix = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head((x + self.mix(x)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(5, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.norm(x + self.attend(x, x, x, need_weights=False)[0])
        return self.head(x.mean(1))


class Clip(nn.Module):
    """Decides by a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().max() if x.abs().max() > 1 else x * 0.5


class Count(nn.Module):
    """Gives something else at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.25 * self.calls)


class Average(nn.Module):
    """Writes a buffer in eval mode, too, and reads it."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(6))
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch.no_grad():
            self.average.mul_(0.5).add_(x.mean(0), alpha=0.5)
        return self.last(x - self.average)


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, *, scale: Tensor, bias: float = 0.5, **more: Any) -> Tensor:
        return self.last(self.first(x).tanh() * scale + bias)


def _between(part: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), part, nn.Linear(6, 3))


def _doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


def _shifted(module: nn.Module, args: tuple[Tensor]) -> Any:
    return (args[0] + 1,)


def _hooked() -> nn.Module:
    made = _between(nn.Tanh())
    made.register_forward_pre_hook(_shifted)
    made.register_forward_hook(_doubled)
    made.get_submodule("0").register_forward_hook(_doubled)
    made.get_submodule("1").register_forward_pre_hook(_shifted)
    return made


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Sequential": (lambda: _between(nn.ReLU()), (4, 5)),
    "residual": (Residual, (4, 3, 6, 6)),
    "attention": (Attention, (4, 7, 5)),
    "value-deciding leaf": (lambda: _between(Clip()), (4, 5)),
    "stateful leaf": (lambda: _between(Count()), (4, 5)),
    "buffers written": (Average, (4, 5)),
    "hooks": (_hooked, (4, 5)),
    "kwargs": (Keywords, (4, 5)),
    "GraphModule": (lambda: fx.symbolic_trace(Residual()), (4, 3, 6, 6)),
}


@dataclass
class Case:
    """A base, what was made of it, inputs, and a folder to write in."""

    base: nn.Module
    aim: nn.Module
    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    folder: Path

    def run(self, module: nn.Module) -> Tensor:
        """What a copy gives that nobody has called before."""
        return self.same(copy.deepcopy(module))

    def same(self, module: Any) -> Tensor:
        """What it gives itself."""
        output: Tensor = module(*self.args, **self.kwargs)
        return output.detach()

    @property
    def example(self) -> Any:
        """As example inputs."""
        return {"x": self.args[0], **self.kwargs} if self.kwargs else self.args


def _case(name: str, folder: Path) -> Case:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    base: nn.Module = build().eval()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    kwargs = {"scale": torch.rand(shape[0], 6, generator=generator)} if name == "kwargs" else {}
    example: Any = {"x": x, **kwargs} if kwargs else x
    return Case(base, randomise(aimgraph.transform(base, example)).eval(), (x,), kwargs, folder)


def _transform(case: Case) -> None:
    made = aimgraph.transform(case.base, case.example)
    for train in (False, True):
        assert torch.equal(case.run(made.train(train)), case.run(copy.deepcopy(case.base).train(train)))
    assert not torch.equal(case.run(case.aim), case.run(case.base))


def _verify(case: Case) -> None:
    report = aimgraph.verify(case.base, case.aim)
    assert report.ok, str(report)
    with torch.no_grad():
        next(p for name, p in case.aim.named_parameters() if not name.startswith("aim.")).add_(0.1)
    assert not aimgraph.verify(case.base, case.aim).ok


def _fold(case: Case) -> None:
    torch.testing.assert_close(case.run(aimgraph.fold(case.aim)), case.run(case.aim))


def _merge(case: Case) -> None:
    torch.testing.assert_close(case.run(aimgraph.merge(case.aim).model), case.run(case.aim))


def _strip(case: Case) -> None:
    assert torch.equal(case.run(aimgraph.strip(case.aim)), case.run(case.base))


def _save(case: Case) -> None:
    aimgraph.save(case.aim, case.folder / "saved")
    assert torch.equal(case.run(aimgraph.load(case.folder / "saved", case.base)), case.run(case.aim))


def _save_memory(case: Case) -> None:
    aimgraph.save(case.aim, case.folder / "saved", what="memory")
    fresh = aimgraph.transform(case.base, case.example).eval()
    aimgraph.load_memory(fresh, case.folder / "saved")
    assert torch.equal(case.run(fresh), case.run(case.aim))


def _export_onnx(memory: Any) -> Callable[[Case], None]:
    def export(case: Case) -> None:
        path, module = case.folder / "model.onnx", case.base if memory == "none" else case.aim
        if memory == "state":
            first = next(path for path, part in case.base.named_modules() if isinstance(part, nn.Conv2d | nn.Linear))
            module = randomise(aimgraph.transform(case.base, case.example, updates=(first,))).eval()
        wanted = case.run(module)
        try:
            aimgraph.export_onnx(module, path, memory=memory, example_inputs=case.example)
        finally:
            assert torch.equal(case.run(module), wanted)  # it has not moved
        session = onnxruntime.InferenceSession(str(path))
        given = (*case.args, *case.kwargs.values())
        feed = {one.name: value.numpy() for one, value in zip(session.get_inputs(), given, strict=False)}
        if memory == "state":
            (name,) = (one.name for one in session.get_inputs() if one.name not in feed)
            feed[name] = module.get_parameter("aim.memory.source.value").detach().numpy()[None].repeat(len(given[0]), 0)
        if memory == "input":
            feed["memory"] = case.aim.get_parameter("aim.memory.source.value").detach().numpy()[None]
        torch.testing.assert_close(torch.as_tensor(session.run(None, feed)[0]), wanted, rtol=1e-3, atol=1e-4)

    return export


def _deepcopy(case: Case) -> None:
    wanted = case.run(case.aim)
    assert torch.equal(case.same(copy.deepcopy(case.aim)), wanted)
    assert torch.equal(case.same(case.aim), wanted)  # the copy's call is not its own


def _pickle(case: Case) -> None:
    made = pickle.loads(pickle.dumps(case.aim))
    assert torch.equal(case.same(made), case.run(case.aim))
    written = io.BytesIO()
    torch.save(case.aim, written)
    written.seek(0)
    assert torch.equal(case.same(torch.load(written, weights_only=False)), case.run(case.aim))


def _compile(case: Case, module: nn.Module) -> None:
    torch._dynamo.reset()
    made = torch.compile(copy.deepcopy(module), backend="eager")
    torch.testing.assert_close(case.same(made), case.run(module))


def _jit_trace(case: Case, module: nn.Module) -> None:
    inputs: Any = {"example_inputs": case.args} if not case.kwargs else {"example_kwarg_inputs": case.example}
    with torch.no_grad():
        made = torch.jit.trace(copy.deepcopy(module), check_trace=False, **inputs)
    given = made(**case.example) if case.kwargs else made(*case.args)
    torch.testing.assert_close(given, case.run(module))


def _torch_export(case: Case, module: nn.Module) -> None:
    made = torch.export.export(copy.deepcopy(module), case.args, case.kwargs)
    torch.testing.assert_close(case.same(made.module()), case.run(module))


def _symbolic_trace(case: Case, module: nn.Module) -> None:
    torch.testing.assert_close(case.same(fx.symbolic_trace(copy.deepcopy(module))), case.run(module))


OURS: dict[str, Callable[[Case], None]] = {
    "transform": _transform,
    "verify": _verify,
    "fold": _fold,
    "merge": _merge,
    "strip": _strip,
    "save, load": _save,
    "save of the memory": _save_memory,
    **{f"export_onnx, memory {kind}": _export_onnx(kind) for kind in ("constant", "input", "state", "inside", "none")},
    "deepcopy": _deepcopy,
    "pickle": _pickle,
}
THEIRS: dict[str, Callable[[Case, nn.Module], None]] = {
    "torch.compile": _compile,
    "torch.jit.trace": _jit_trace,
    "torch.export": _torch_export,
    "symbolic_trace": _symbolic_trace,
}

_ALIKE = ("export_onnx, memory state", "export_onnx, memory inside")
"""What goes the way of another one for most of its length."""

KEEPS = "torch itself gives something else when the same inputs come again"
REFUSED: dict[tuple[str, str], str] = {
    ("residual", "merge"): "2 of 3 layers read what no bias can hold",
    ("attention", "merge"): "3 of 4 layers read what no bias can hold",
    ("GraphModule", "merge"): "2 of 3 layers read what no bias can hold",
    ("hooks", "export_onnx, memory input"): "has hooks around its forward",
    ("hooks", "export_onnx, memory state"): "has hooks around its forward",
    **{
        ("value-deciding leaf", f"export_onnx, memory {kind}"): "Could not guard on data-dependent expression"
        for kind in ("constant", "input", "state", "inside", "none")
    },
    **{
        (name, f"export_onnx, memory {kind}"): KEEPS
        for name in ("stateful leaf", "buffers written")
        for kind in ("constant", "input", "state", "inside", "none")
    },
}
"""What a function of ours does not do, and what it says."""

TORCH_ALONE: dict[tuple[str, str], str] = {
    ("hooks", "torch.export"): "would leave out the hooks around its forward: export torch.nn.Sequential",
}
"""What torch does for the base and not for what is transformed, and what is said."""


@pytest.mark.parametrize("function", mostly_slow(OURS, kept=[one for one in OURS if one not in _ALIKE]))
@pytest.mark.parametrize("name", MODELS)
def test_what_aimgraph_does(name: str, function: str, tmp_path: Path) -> None:
    case = _case(name, tmp_path)
    if said := REFUSED.get((name, function)):
        with pytest.raises(aimgraph.AimgraphError, match=said):
            OURS[function](case)
        assert not any(tmp_path.iterdir())
    else:
        OURS[function](case)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("function", THEIRS)
@pytest.mark.parametrize("name", MODELS)
def test_what_torch_does(name: str, function: str, tmp_path: Path) -> None:
    case, go = _case(name, tmp_path), THEIRS[function]
    error: Any = None
    try:
        go(case, case.base)
    except Exception as raised:  # whatever torch raises, or a wrong value
        error = raised
    if said := TORCH_ALONE.get((name, function)):
        assert error is None
        with pytest.raises(aimgraph.AimgraphError, match=said):
            go(case, case.aim)
    elif error is None or (function == "symbolic_trace" and isinstance(error, fx.proxy.TraceError)):
        go(case, case.aim)  # its graph is there already: nothing is traced
    else:
        with pytest.raises(type(error)):
            go(case, case.aim)
