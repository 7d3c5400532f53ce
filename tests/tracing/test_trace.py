"""From a module to graphs."""

from collections.abc import Callable
from types import MethodType
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.compiler.graph_data import module_path
from aimgraph.compiler.node_keys import OUTPUT_OF
from aimgraph.errors import TraceError
from aimgraph.fake.faker import Faker
from aimgraph.runtime.guards import guard
from aimgraph.runtime.inplace import INPLACE
from aimgraph.tracing.affine import classify_layers
from aimgraph.tracing.observe import observe
from aimgraph.tracing.trace import trace
from tests.nets import FunctionalDropout, Residual


def graphs_of(root: nn.Module, x: Tensor) -> dict[str, object]:
    return trace(Faker(root), classify_layers(root), ((x,), {})).graphs


def test_one_graph_where_the_modes_agree() -> None:
    assert list(graphs_of(Residual(), torch.zeros(2, 3, 8, 8))) == ["both"]


def test_two_graphs_where_they_differ_and_flags_are_restored() -> None:
    root = FunctionalDropout().eval()
    root.norm.train()
    found = graphs_of(root, torch.zeros(2, 3, 8, 8))
    assert list(found) == ["train", "eval"]
    assert (root.training, root.norm.training, root.conv.training) == (False, True, False)


@pytest.mark.parametrize(
    "tell", [lambda t: t, lambda t: 1 if t else None, lambda t: [1] if t else (1,), lambda t: 1.0 if t else 2.0]
)
def test_what_a_module_tells_of_its_mode(tell: Callable[[bool], Any]) -> None:
    root, x = _Told(tell), torch.randn(2, 3)
    report = aimgraph.verify(root, aimgraph.transform(root, x))
    assert report.ok, str(report)


def test_a_mode_that_is_kept_on_an_instance() -> None:
    root, x = nn.Sequential(nn.Linear(3, 3), _OnInstance()), torch.randn(2, 3)
    report = aimgraph.verify(root, aimgraph.transform(root, x))
    assert report.ok, str(report)


def test_the_mode_of_a_scripted_part() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.part = nn.Linear(3, 3), torch.jit.script(nn.Sequential(nn.Linear(3, 3)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.part(self.mix(x))
            return x.relu() if self.part.training else x

    root, x = Net(), torch.randn(2, 3)
    report = aimgraph.verify(root, aimgraph.transform(root, x))
    assert report.ok, str(report)


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)

    def forward(self, pair: list[Tensor], shape_of: list[Tensor]) -> Tensor:
        first, second = pair
        rows, columns = shape_of[0].shape
        return self.mix(first + second).reshape(rows, columns)


def test_unpacking_asks_for_the_length_of_what_is_given() -> None:
    base, x = _Pair(), torch.randn(2, 3)
    aim = aimgraph.transform(base, (([x, x], [x])))
    assert torch.equal(aim([x, x], [x]), base([x, x], [x]))
    with pytest.raises(ValueError, match="too many values to unpack"), pytest.warns(UserWarning, match=r"len\(\)"):
        aim([x, x, x], [x])
    questions = [node for node in aim.graph.nodes if node.target is guard]
    assert len(questions) == 1, "the rank of a tensor is not asked for"


def test_flags_are_restored_after_a_failure() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x) if self.mix(x).sum() > 0 else x

    root = Net().eval()
    root.mix.train()
    with pytest.raises(TraceError):
        graphs_of(root, torch.zeros(2, 2))
    assert (root.training, root.mix.training) == (False, True)


_ran: list[str] = []
"""Types of what `_Chosen` ran on: attributes of its own would be put back."""


class _Chosen(nn.Module):
    """Multiplies by one of two parameters of the same shape, by what `chosen` makes of the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 3)
        self.one, self.other = nn.Parameter(torch.full((3,), 2.0)), nn.Parameter(torch.full((3,), 3.0))

    def chosen(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        _ran.append(type(x).__name__)
        return self.mix(x) * (self.one if self.chosen() else self.other)


class _ByFlag(_Chosen):
    def chosen(self) -> bool:
        return self.training


class _BySetting(_Chosen):
    chosen_now = True

    def train(self, mode: bool = True) -> Self:
        self.chosen_now = mode
        return super().train(mode)

    def chosen(self) -> bool:
        return self.chosen_now


class _Told(_Chosen):
    """A layer of its own says what mode it is in."""

    def __init__(self, tell: Callable[[bool], Any]) -> None:
        super().__init__()
        self.teller = _Teller(tell)

    def chosen(self) -> bool:
        return self.teller() in (True, 1.0, [1])


class _Teller(nn.Module):
    def __init__(self, tell: Callable[[bool], Any]) -> None:
        super().__init__()
        self.tell = tell

    def forward(self) -> Any:
        return self.tell(self.training)


class _OnInstance(_Chosen):
    def __init__(self) -> None:
        super().__init__()
        self.now = True
        self.train = MethodType(_set, self)  # type: ignore[method-assign]

    def chosen(self) -> bool:
        return self.now


def _set(module: nn.Module, mode: bool = True) -> nn.Module:
    module.now = mode  # type: ignore[assignment]
    return nn.Module.train(module, mode)


class _Unseen(_Chosen):
    """Looks at its mode where no property tells."""

    def chosen(self) -> bool:
        return bool(vars(self)["training"])


class _UnseenInput(_Unseen):
    """Multiplies in train mode what it multiplies by in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        _ran.append(type(x).__name__)
        first, second = self.mix(x), self.mix(x + 1)
        return first - second if self.chosen() else second - first


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(_Chosen, ["both"])] + [(kind, ["train", "eval"]) for kind in (_ByFlag, _BySetting, _Unseen, _UnseenInput)],
)
def test_traced_once_where_the_mode_decides_nothing(kind: type[_Chosen], expected: list[str]) -> None:
    root, x = kind(), torch.randn(2, 3)
    faker, kinds = Faker(root), classify_layers(root)
    in_train = observe(faker, kinds, ((x,), {}))["train"].operations
    _ran.clear()
    found = trace(faker, kinds, ((x,), {}), in_train=in_train)
    assert list(found.graphs) == expected
    assert _ran == ["LayerProxy"] * len(expected)
    aim = aimgraph.transform(root, x)
    for mode in (True, False):
        assert torch.equal(aim.train(mode)(x), root.train(mode)(x))


@pytest.mark.parametrize("function", INPLACE, ids=lambda f: f.__name__)
def test_in_place_operators(function: object) -> None:
    name = function.__name__  # type: ignore[attr-defined]
    symbol = {
        "iadd": "+", "isub": "-", "imul": "*", "itruediv": "/", "ifloordiv": "//", "imod": "%", "ipow": "**",
        "imatmul": "@", "iand": "&", "ior": "|", "ixor": "^",
    }[name]  # fmt: skip
    scope: dict[str, object] = {}
    exec(f"def change(x, y):\n    z = x\n    x {symbol}= y\n    return z, x", scope)
    change = scope["change"]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(3, 3, bias=False)
            nn.init.eye_(self.mix.weight)

        def forward(self, x: Tensor, y: Tensor) -> object:
            return change(x, y)  # type: ignore[operator]

    root = Net()
    integer = name in ("iand", "ior", "ixor")
    make = lambda: torch.tensor([[6, 3], [5, 2]]) if integer else torch.tensor([[6.0, 3.0], [5.0, 2.0]])  # noqa: E731
    y = make() // 2 + 1
    graph = trace(Faker(root), classify_layers(root), ((make(), y), {})).graphs["both"]
    expected, seen = root(make(), y), torch.fx.GraphModule(root, graph)(make(), y)
    assert all(torch.equal(a, b) for a, b in zip(expected, seen, strict=True))
    if name != "imatmul":
        assert torch.equal(seen[0], seen[1])  # the alias saw the change
    numbers = function(7, 2) if name != "imatmul" else None  # type: ignore[operator]
    assert numbers is None or numbers == change(7, 2)[1]  # type: ignore[operator]


def test_numbers_are_not_rebound() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            count = x.shape[0]
            more = count
            more += 1
            return self.mix(x) * count + more

    root = Net()
    x = torch.randn(2, 3)
    graph = graphs_of(root, x)["both"]
    assert torch.equal(torch.fx.GraphModule(root, graph)(x), root(x))  # type: ignore[arg-type]


def test_outputs_of_modules_are_noted() -> None:
    graph = graphs_of(Residual(), torch.zeros(2, 3, 8, 8))["both"]
    noted = {path: node.name for node in graph.nodes for path in node.meta.get(OUTPUT_OF, ())}  # type: ignore[attr-defined]
    assert noted["stem"] == noted["stem.2"] == "stem_2"
    assert {"block", "block.3", "path", "down", "drop", "head"} <= set(noted)
    paths = {node.name: module_path(node) for node in graph.nodes}  # type: ignore[attr-defined]
    assert paths["stem_2"] == "stem.2"
