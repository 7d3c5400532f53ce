"""Whether code could leave something to the next forward is told by the code; where it can't be told, it could."""

import enum
import functools
import importlib
import itertools
import logging
import sys
from collections import Counter, deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.models_zoo.loader import load_model
from aimgraph.tracing.keeps_nothing import keeps_nothing
from tests.nets import NETS, build

CACHE: dict[str, Any] = {}
SCALE = 2.0
_count = 0


class Base(nn.Module):
    """A layer; subclasses do something else besides."""

    shared: list[Any] = []  # noqa: RUF012  (what it is about)

    def __init__(self, held: Any = None) -> None:
        super().__init__()
        self.mix, self.held = nn.Linear(4, 4), held


def helper(x: Tensor) -> Tensor:
    parts = []
    for row in x.split(1):
        parts.append(F.relu(row) * SCALE)
    found = {"x": torch.cat(parts)}
    found.update(y=x)
    return found["x"]


def remembers(x: Tensor) -> Tensor:
    global _count
    _count += 1
    return x


def counter() -> Any:
    number = 0

    def count(x: Tensor) -> Tensor:
        nonlocal number
        number += 1
        return x * number

    return count


class Pure(Base):
    def forward(self, x: Tensor) -> Tensor:
        def double(y: Tensor) -> Tensor:
            return y * 2

        return self._finished([double(helper(self.mix(x))) for _ in range(2)])

    def _finished(self, parts: list[Tensor]) -> Tensor:
        return sum(parts) / self.scale

    @property
    def scale(self) -> float:
        return 3.0


class Attribute(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.mix(x)
        return self.last


class OfAPart(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.mix.calls = 1
        return self.mix(x)


class Item(Base):
    def forward(self, x: Tensor) -> Tensor:
        CACHE["x"] = self.mix(x)
        return CACHE["x"]


class InAMethod(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self._remember(self.mix(x))

    def _remember(self, x: Tensor) -> Tensor:
        self.shared.append(x)
        return x


class Alias(Base):
    def forward(self, x: Tensor) -> Tensor:
        kept = self.shared
        kept.append(x)
        return self.mix(x)


class Global(Base):
    def forward(self, x: Tensor) -> Tensor:
        return remembers(self.mix(x))


class Default(Base):
    def forward(self, x: Tensor, kept: list[Tensor] = []) -> Tensor:  # noqa: B006  (what it is about)
        kept.append(x)
        return self.mix(x)


class Property(Base):
    @property
    def seen(self) -> int:
        self.number = getattr(self, "number", 0) + 1
        return self.number

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) * self.seen


class Inner(Base):
    def forward(self, x: Tensor) -> Tensor:
        def keep(y: Tensor) -> Tensor:
            self.last = y
            return y

        return keep(self.mix(x))


class Held(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.held(self.mix(x))


class Iterated(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) * next(self.held)


class Named(Base):
    def forward(self, x: Tensor) -> Tensor:
        setattr(self, "last", x)  # noqa: B010  (what it is about)
        return self.mix(x)


class Remembered(Base):
    @functools.cache  # noqa: B019  (what it is about)
    def grid(self, size: int) -> Tensor:
        return torch.arange(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) + self.grid(4)


class Callable:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Layout(enum.Enum):
    """As timm has one: nothing but names."""

    FIRST = "NCHW"
    LAST = "NHWC"

    @property
    def is_last(self) -> bool:
        return self is Layout.LAST


class Calls(enum.Enum):
    """Remembers in a method."""

    ONE = 1

    def count(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return x * self.calls


class Laid(Base):
    def forward(self, x: Tensor) -> Tensor:
        if Layout("NHWC").is_last and self.held is not None:
            _LOGGER.debug("laid out as %s", self.held)
        return self.mix(x)


_LOGGER = logging.getLogger(__name__)


KEEPING = [
    *(Attribute(), OfAPart(), Item(), InAMethod(), Alias(), Global(), Default(), Property(), Inner(), Named()),
    *(Held(counter()), Held(Callable()), Held(functools.partial(counter())), Held((counter(),)), Remembered()),
    *(Iterated(itertools.count()), Pure(deque()), Pure(Counter()), Pure({"a": [Callable()]})),
    *(Pure(Calls.ONE), Pure(Calls)),
]


@pytest.mark.parametrize("model", KEEPING, ids=lambda model: f"{type(model).__name__}({model.held!r:.30})")
def test_what_may_keep_something_is_found_at_any_depth(model: nn.Module) -> None:
    assert not keeps_nothing(model)
    assert not keeps_nothing(nn.Sequential(nn.ReLU(), nn.Sequential(model)))


def test_so_are_hooks_and_replaced_forwards() -> None:
    hooked, replaced = Pure(), Pure()
    hooked.mix.register_forward_hook(lambda *_: None)
    replaced.forward = helper  # type: ignore[method-assign]
    assert not keeps_nothing(hooked)
    assert not keeps_nothing(replaced)


@pytest.mark.parametrize(
    "held",
    [None, F.relu, helper, functools.partial(helper), {"a": (1, "b")}, nn.ReLU, torch.float, Layout.LAST, Layout],
)
def test_plain_code_keeps_nothing(held: Any) -> None:
    assert keeps_nothing(nn.Sequential(Pure(held), nn.BatchNorm2d(3)))


def test_a_choice_of_names_and_a_log_keep_nothing() -> None:
    assert keeps_nothing(Laid(Layout.FIRST))


@pytest.mark.parametrize("name", ["linear", "residual", "conv1d", "tokens"])
def test_usual_networks_keep_nothing(name: str) -> None:
    assert name in NETS
    assert keeps_nothing(build(name)[0])


@pytest.mark.parametrize(
    "name", ["torchvision/resnet18", "torchvision/vit_b_16", "timm/resnet18", "timm/vit_tiny_patch16_224", "zoo/mlp"]
)
def test_so_do_those_of_the_libraries(name: str) -> None:
    with torch.device("meta"):
        assert keeps_nothing(load_model(name))


def test_a_file_of_the_user_may_have_the_name_of_one_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyclbr.py").write_text("kept = []\ndef remember(x):\n    kept.append(x)\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pyclbr", raising=False)
    remember = importlib.import_module("pyclbr").remember
    assert not keeps_nothing(Held(remember))
    monkeypatch.delitem(sys.modules, "pyclbr")
