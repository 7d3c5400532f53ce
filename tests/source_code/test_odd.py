"""Source of modules that hold, call or name things in ways that a writer can get wrong."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import aimgraph
from aimgraph import PlanError
from aimgraph.api.to_source import imported

X = torch.randn(3, 8)
MAP = torch.randn(3, 3, 6, 6)


def net(forward: Callable[..., Any], name: str = "Net", **members: Any) -> nn.Module:
    """A module with members and a forward."""
    made: nn.Module = type(name, (nn.Module,), {"forward": forward, "__module__": __name__})()
    for key, member in members.items():
        setattr(made, key, member)
    return made


def linear() -> nn.Linear:
    return nn.Linear(8, 8)


def buffered(**buffers: Tensor) -> Callable[[nn.Module], nn.Module]:
    def give(module: nn.Module) -> nn.Module:
        for name, buffer in buffers.items():
            module.register_buffer(name, buffer)
        return module

    return give


class Pair(NamedTuple):
    first: Tensor
    second: dict[str, Tensor]


@dataclass
class Output:
    last: Tensor
    hidden: tuple[Tensor, ...] | None = None
    pooled: Tensor | None = None


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = linear()

    def forward(self, x: Tensor) -> Output:
        y = self.a(x)
        return Output(y, pooled=y.mean(1, keepdim=True))


def _record(self: Any, x: Tensor) -> Output:
    given = self.inner(x)
    return Output(self.b(given.last) + given.pooled, hidden=(x, given.last))


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = linear()

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return self.a(x) + noise if self.training else self.a(x)


class Decoder(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.encoder.weight)  # type: ignore[arg-type]


def _negative_base(self: Any, x: Tensor) -> Tensor:
    return (-2) ** self.a(x).relu().round()


def _alias(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    z = y
    z += 1
    return y * z


def _view(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    z = y.view(-1, 2, 4)
    z *= 2
    return y * x


def _input(self: Any, x: Tensor) -> Tensor:
    x += 1
    return self.a(x)  # type: ignore[no-any-return]


def _counted(self: Any, x: Tensor) -> Tensor:
    seen = self.seen
    seen += x.mean().detach()
    return self.a(x) + seen  # type: ignore[no-any-return]


def _empty_block(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = self.a.weight
    return F.linear(x, weight)


def _block(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = self.a(x).abs().mean()
    return self.a(x) * scale  # type: ignore[no-any-return]


def _each(self: Any, x: Tensor) -> Tensor:
    for layer in self.xs:
        x = layer(x)
    return x * 2


def _pair(self: Any, x: Tensor) -> Pair:
    return Pair(self.a(x), {"b": x})


def _parameters(self: Any, x: Tensor) -> Tensor:
    return self.a(x) * self.scales[1] + self.shifts["a b"]  # type: ignore[no-any-return]


def _twice(self: Any, x: Tensor) -> Tensor:
    return self.same(self.a(self.same(x)))  # type: ignore[no-any-return]


def _tied(self: Any, x: Tensor) -> Tensor:
    return self.decoder(self.encoder(x))  # type: ignore[no-any-return]


def _mha(self: Any, x: Tensor) -> Tensor:
    return self.attention(x[None], x[None], x[None])[0][0]  # type: ignore[no-any-return]


def _items(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    y[:, 2 : x.shape[0] + 1] = 0
    return y[()]


def _quoted(self: Any, x: Tensor) -> Tensor:
    return self.parts['say "so"'](x) + getattr(self, "class")(x)  # type: ignore[no-any-return]


def _first(self: Any, x: Tensor) -> Tensor:
    return self.a(x)  # type: ignore[no-any-return]


def _inner(self: Any, x: Tensor) -> Tensor:
    return self.b(self.a(x))  # type: ignore[no-any-return]


def _numbers(self: Any, x: Tensor) -> Tensor:
    return self.drop(self.a(x)) * self.scale  # type: ignore[no-any-return]


def _logs(self: Any, x: Tensor) -> Tensor:
    return self.a(x).log()  # type: ignore[no-any-return]


def _noise(self: Any, x: Tensor) -> Tensor:
    return self.c(self.b(x, torch.randn_like(x)))  # type: ignore[no-any-return]


def _encoder(self: Any, x: Tensor) -> Tensor:
    return self.encoder(self.a(x)[None])[0]  # type: ignore[no-any-return]


def keyword(module: nn.Module) -> nn.Module:
    module.add_module("class", linear())
    return module


MADE: dict[str, Callable[[], nn.Module]] = {
    "a negative base": lambda: net(_negative_base, a=linear()),
    "another name": lambda: net(_alias, a=linear()),
    "a view": lambda: net(_view, a=linear()),
    "an input": lambda: net(_input, a=linear()),
    "a counter": lambda: buffered(seen=torch.zeros(()))(net(_counted, a=linear())),
    "an empty block": lambda: net(_empty_block, a=linear()),
    "a block": lambda: net(_block, a=linear()),
    "layers called as a value": lambda: net(_each, xs=nn.ModuleList([linear() for _ in range(3)])),
    "layers called as a module": lambda: net(
        lambda self, x: _each(type("A", (), {"xs": self.Fs}), x).relu(), Fs=nn.ModuleList([linear() for _ in range(3)])
    ),
    "a named tuple": lambda: net(_pair, a=linear()),
    "parameters in lists and dicts": lambda: net(
        _parameters,
        a=linear(),
        scales=nn.ParameterList([torch.randn(8), torch.randn(8)]),
        shifts=nn.ParameterDict({"a b": nn.Parameter(torch.randn(8))}),
    ),
    "a layer twice": lambda: net(_twice, a=linear(), same=linear()),
    "a weight of another": lambda: (lambda one: net(_tied, encoder=one, decoder=Decoder(one)))(linear()),
    "attention": lambda: net(_mha, attention=nn.MultiheadAttention(8, 2, batch_first=True)),
    "an encoder": lambda: net(
        _encoder, a=linear(), encoder=nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0), 2)
    ),
    "items": lambda: net(_items, a=linear()),
    "names with signs": lambda: keyword(net(_quoted, parts=nn.ModuleDict({'say "so"': linear()}))),
    "numbers of numpy": lambda: net(_numbers, a=linear(), drop=nn.Dropout(np.linspace(0, 0.3, 4)[1]), scale=np.sqrt(8)),
    "what is no number": lambda: net(_logs, a=linear()),
    "inputs by mode": lambda: net(_noise, b=Noisy(), c=linear()),
    "none in a list": lambda: net(_first, a=linear(), rest=nn.ModuleList([linear(), None])),  # type: ignore[list-item]
    "whole numbers": lambda: net(_first, a=linear(), n=nn.Parameter(torch.ones(3, dtype=torch.int64), False)),
    "one name for two": lambda: net(_inner, a=linear(), b=net(_first, a=linear())),
    **{
        f"a class called {name}": lambda name=name: net(_first, name, a=linear())  # type: ignore[misc]
        for name in ("F", "nn", "torch", "load", "Path", "load_model", "Carry", "fit", "Tensor", "Any", "OrderedDict")
    },
    "a part called F": lambda: net(_inner, a=linear(), b=net(_first, "F", a=linear())),
    "a dataclass": lambda: net(_record, inner=Inner(), b=linear()),
    "a chain": lambda: nn.Sequential(linear(), nn.ReLU(), linear()),
}


@pytest.mark.parametrize("kind", MADE)
def test_the_same_bits(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = MADE[kind]().eval()
    aimgraph.to_source(module, tmp_path / "made", X)
    theirs = imported(tmp_path / "made").load()
    assert len(list(theirs.parameters())) == len(list(module.parameters()))
    outputs = [one(X.clone()) for one in (module, theirs)]
    flat = [torch.cat([one.flatten() for one in aimgraph.inputs.arguments.tensors_in(output)]) for output in outputs]
    assert torch.equal(*map(torch.nan_to_num, flat))
    for file in ("model.py", "__init__.py"):
        text = (tmp_path / "made" / file).read_text()
        command = [sys.executable, "-m", "ruff", "format", "--line-length", "120", "--stdin-filename", file, "-"]
        assert subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout == text
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I", "--line-length", "120"]
    done = subprocess.run([*command, str(tmp_path / "made")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_inputs_that_have_one_value_are_no_inputs(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, mode: str = "relu") -> Tensor:
        y = self.a(x) * scale
        y = y if mask is None else y * mask
        return F.relu(y) if mode == "relu" else y

    module = net(forward, a=linear())
    aimgraph.to_source(module, tmp_path / "plain", X)
    theirs = imported(tmp_path / "plain").load()
    assert torch.equal(theirs(X), module(X))
    for given in ({"mask": X}, {"scale": 3.0}, {"mode": "id"}):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            theirs(X, **given)
    aimgraph.to_source(module, tmp_path / "masked", {"x": X, "mask": X})
    theirs = imported(tmp_path / "masked").load()
    assert torch.equal(theirs(X, mask=X), module(X, mask=X))
    with pytest.raises(TypeError, match="missing 1 required"):
        theirs(X)


def test_shapes_say_what_goes_with_the_batch(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 13, 3, padding=1), nn.Flatten(), nn.Unflatten(0, (-1, 1)), nn.Flatten(0, 1))
    for module in (model, aimgraph.transform(model, MAP)):
        aimgraph.to_source(module, tmp_path / f"made{isinstance(module, aimgraph.AimModule)}", MAP)
    text = (tmp_path / "madeTrue" / "model.py").read_text()
    assert "# [B, 13, 6, 6]" in text
    assert "# [B, 1, 468]" in text


def test_channels_last(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = MAP.contiguous(memory_format=torch.channels_last)
    aimgraph.to_source(model, tmp_path / "made", x)
    theirs = imported(tmp_path / "made").load()
    assert theirs.get_parameter("0.weight").is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(theirs(x), model(x))


def _with_hook() -> nn.Module:
    model = nn.Sequential(linear(), linear())
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a parametrization": (
        lambda: nn.Sequential(parametrizations.weight_norm(linear())),
        r"^0 computes its weight by a parametrization, which has no source: .*remove_parametrizations",
    ),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.weight_norm(linear())),
        r"hooks are not written, and there are some at 0 \(WeightNorm\): take them away first",
    ),
    "pruning": (
        lambda: nn.Sequential(prune.l1_unstructured(linear(), "weight", amount=2)),
        r"hooks are not written, and there are some at 0 \(L1Unstructured\)",
    ),
    "a hook": (_with_hook, r"gives other outputs than the module in eval mode, by up to .*at 0 \(_with_hook"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_written_is_named(kind: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(PlanError, match=message):
        aimgraph.to_source(make(), tmp_path / "made", X)
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_nobody_can_import(tmp_path: Path) -> None:
    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum().item() > 0 else x

    with pytest.raises(PlanError, match=r"1 can't be traced, and its class .*Local can't be imported by other code"):
        aimgraph.to_source(nn.Sequential(linear(), Local()), tmp_path / "made", X, imports=True)


def test_a_state_that_a_batch_pools_is_carried(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    aim = aimgraph.transform(model, MAP, updates=("1",), pool="batch", carry="state")
    assert aimgraph.to_source(aim, tmp_path / "made").compared == ("eval", "train")
