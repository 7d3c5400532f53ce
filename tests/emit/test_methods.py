"""Methods of the base's class on a transformed module: what only tells something of the model can be called."""

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from tests.nets import randomise


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return run


class Parent(nn.Module):
    def layer_names(self) -> list[str]:
        return ["parent"]


class Net(Parent):
    """Has methods that training code asks for, and others."""

    depth = 2

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 4))
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.register_buffer("scale", torch.ones(4))
        self.names, self.rate = ["position"], 0.1

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.position
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.head(self.norm(x) * self.scale)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {*self.names, *(name for name, parameter in self.named_parameters() if parameter.ndim == 1)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^position", "blocks": r"^blocks" if coarse else [(r"^blocks\.(\d+)", None)]}

    def layer_of(self, name: str, prefix: str = "") -> int:
        return self._number(name.removeprefix(prefix))

    def _number(self, name: str) -> int:
        return int(name.split(".")[1]) if name.startswith("blocks") else self.depth

    def layer_names(self) -> list[str]:
        return [*super().layer_names(), *(name for name, _ in self.named_children())]

    def groups(self, rate: float = 0.1) -> Iterator[dict[str, Any]]:
        for name, parameter in self.named_parameters():
            yield {"params": [parameter], "lr": rate * 0.5 ** self._number(name)}

    def configure(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.groups(self.rate))

    @logged
    def classifier(self) -> nn.Module:
        return self.head

    def stored(self) -> set[str]:
        return {key for key, value in self.state_dict().items() if value.numel() == 4}

    def count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def itself(self) -> "Net":
        return self

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @staticmethod
    def sizes() -> tuple[int, ...]:
        return (4, 3)

    @classmethod
    def build(cls) -> "Net":
        return cls()

    # what computes with the model
    def features(self, x: Tensor) -> Tensor:
        return self.blocks[0](x)

    def penalty(self) -> Tensor:
        return sum(parameter.square().sum() for parameter in self.parameters())

    def caught(self) -> float:
        try:
            return float(self.head.weight.detach().sum())
        except Exception:
            return 0.0

    def first_row(self) -> Tensor:
        return self.position.data[0]

    def dummy(self) -> Tensor:
        return self(torch.zeros(2, 4))

    @property
    def size(self) -> Tensor:
        return self.head.weight.norm()

    # what changes it
    def freeze(self) -> None:
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def hold(self) -> None:
        self.norm.eval()

    def draw(self) -> None:
        nn.init.zeros_(self.head.weight)

    def widen(self) -> None:
        setattr(self, "head", nn.Linear(4, 5))  # noqa: B010

    def add(self) -> None:
        self.blocks.append(nn.Linear(4, 4))

    def checkpointing(self, enable: bool = True) -> None:
        self.rate = 0.5 * enable

    def reset(self, classes: int) -> None:
        self.head = nn.Linear(4, classes)

    def __len__(self) -> int:
        return self.depth


def made(**options: Any) -> tuple[Net, Any]:
    base = Net()
    return base, randomise(aimgraph.transform(base, torch.randn(2, 4), **options))


TELLS: dict[str, Callable[[Any], Any]] = {
    "names": lambda net: net.no_weight_decay(),
    "patterns": lambda net: (net.group_matcher(), net.group_matcher(coarse=True)),
    "arguments": lambda net: (net.layer_of("blocks.1.weight"), net.layer_of("a.head", prefix="a.")),
    "static": lambda net: net.sizes(),
    "property": lambda net: net.device,
    "class": lambda net: type(net.build()),
}


@pytest.mark.parametrize("what", TELLS)
@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_what_tells_something_is_told(what: str, lowering: str) -> None:
    base, aim = made(lowering=lowering)
    for module in (aim, copy.deepcopy(aim), aimgraph.transform(nn.Sequential(base), torch.randn(2, 4), within="0")[0]):
        extra = {"aim.memory.source.value"} if what == "names" else set()
        assert TELLS[what](module) == (TELLS[what](base) | extra if extra else TELLS[what](base))


def test_it_sees_the_modules_and_the_parameters_of_the_result() -> None:
    base, aim = made()
    assert aim.classifier() is aim.head
    assert aim.itself() is aim
    assert aim.layer_names() == [*base.layer_names(), "aim"]
    assert aim.count() == sum(parameter.numel() for parameter in aim.parameters()) > base.count()
    (rates,) = ({id(group["params"][0]): group["lr"] for group in aim.configure().param_groups},)
    assert rates.keys() == {id(parameter) for parameter in aim.parameters()}
    for group, (name, _) in zip(base.configure().param_groups, base.named_parameters(), strict=True):
        assert rates[id(aim.get_parameter(name))] == group["lr"]
    extra = aim.stored() - base.stored()
    assert extra == {f"aim.memory.reads.blocks.{index}.weight" for index in (0, 1)}
    aim.add_memory_set("b")
    assert "aim.sets.b.memory.source.value" in aim.no_weight_decay()


LOST = ("features", "penalty", "caught", "first_row", "dummy", "size", "freeze", "hold", "draw", "widen", "add")


@pytest.mark.parametrize("name", [*LOST, "checkpointing", "reset"])
def test_what_computes_or_changes_is_refused_and_has_changed_nothing(name: str) -> None:
    _, aim = made()
    before = {key: value.clone() for key, value in aim.state_dict().items()}
    parts, flags = list(aim.modules()), [(m.training, [p.requires_grad for p in m.parameters()]) for m in aim.modules()]
    x = torch.randn(3, 4)
    wanted = aim.eval()(x)
    aim.train()
    with pytest.raises(AttributeError, match=rf"{name}\(\) is a method of Net, and the transformed module has its for"):
        getattr(aim, name)(**{"features": {"x": x}, "reset": {"classes": 5}}.get(name, {}))
    assert all(one is other for one, other in zip(parts, aim.modules(), strict=True))
    assert flags == [(m.training, [p.requires_grad for p in m.parameters()]) for m in aim.modules()]
    assert all(torch.equal(value, before[key]) for key, value in aim.state_dict().items())
    assert aim.rate == 0.1
    assert torch.equal(aim.eval()(x), wanted)


def test_what_is_known_to_be_lost_is_no_attribute_and_listed() -> None:
    _, aim = made()
    for name in ("features", "checkpointing", "reset"):
        assert not hasattr(aim, name)
    for name in ("no_weight_decay", "group_matcher", "device", "sizes"):
        assert hasattr(pickle.loads(pickle.dumps(aim)), name)
    (note,) = [note for note in aimgraph.plan(aim).notes if "lost" in note]
    assert note == "methods of Net that are lost: __len__, checkpointing, features, reset"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = aim.nothing
