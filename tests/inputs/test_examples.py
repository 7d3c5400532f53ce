"""Example inputs, given and inferred."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

import aimgraph
from aimgraph.inputs.batch import input_shapes, random_inputs
from aimgraph.inputs.examples import resolve_inputs


class Configured(nn.Module):
    def __init__(self, name: str, value: object) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 38 * 38, 2)
        setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).flatten(1))


class _Cfg:
    input_size = (3, 40, 40)


@pytest.mark.parametrize(
    ("base", "shape"),
    [
        (nn.Sequential(nn.Conv2d(3, 2, 3)), [1, 3, 224, 224]),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 2)), [1, 1, 28, 28]),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 30 * 30, 2)), [1, 3, 32, 32]),
        (nn.Sequential(nn.Conv1d(5, 2, 3)), [1, 5, 224]),
        (nn.Sequential(nn.Conv3d(2, 2, 3)), [1, 2, 16, 112, 112]),
        (nn.Sequential(nn.Linear(7, 2)), [1, 7]),
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), [1, 3072]),
        (Configured("default_cfg", {"input_size": (3, 40, 40)}), [1, 3, 40, 40]),
        (Configured("pretrained_cfg", _Cfg()), [1, 3, 40, 40]),
    ],
)
def test_inferred_with_a_warning(base: nn.Module, shape: list[int]) -> None:
    with pytest.warns(UserWarning, match=r"no example_inputs given: assuming one input of shape") as caught:
        aim = aimgraph.transform(base)
    assert str(shape) in str(caught[0].message)
    assert [list(s) for s in aimgraph.plan(aim).inputs] == [shape]


def test_forms_of_example_inputs() -> None:
    base, x = nn.Sequential(nn.Linear(3, 2)), torch.zeros(2, 3)
    assert resolve_inputs(base, x) == ((x,), {})
    assert resolve_inputs(base, [x]) == ((x,), {})
    assert resolve_inputs(base, {"input": x}) == ((), {"input": x})
    assert resolve_inputs(base, ((x,), {"flag": 1})) == ((x,), {"flag": 1})


def test_random_inputs_follow_shapes_and_dtypes() -> None:
    inputs = ((torch.zeros(4, 3), [torch.zeros(4, dtype=torch.long), 5]), {"mask": torch.zeros(7, 4)})
    args, kwargs = random_inputs(inputs, 2, seed=0)
    assert input_shapes((args, kwargs)) == [[2, 3], [2], [7, 4]]
    assert args[1][0].dtype == torch.long
    assert args[1][1] == 5
    assert torch.equal(args[0], random_inputs(inputs, 2, seed=0)[0][0])
    assert not torch.equal(args[0], random_inputs(inputs, 2, seed=1)[0][0])


def test_only_shapes_count() -> None:
    base = nn.Sequential(nn.Linear(3, 2))
    plans = [aimgraph.plan(base, x).to_dict() for x in (torch.zeros(2, 3), torch.full((2, 3), float("nan")))]
    assert plans[0] == plans[1]


class Bag:
    """Tensors in an object of a class that nobody has told torch of."""

    def __init__(self, x: Tensor, scale: float = 2.0) -> None:
        self.x, self.scale = x, scale


class Mapped(dict[str, Tensor]):
    """A subclass of dict."""

    @property
    def x(self) -> Tensor:
        return self["x"]

    scale = 2.0


class OfBags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, bag: Any, y: Tensor | None = None) -> Tensor:
        mixed = self.mix(bag.x if y is None else bag.x + y)
        return self.head(torch.relu(mixed)) * bag.scale


@pytest.mark.parametrize("kind", [Bag, Mapped])
@pytest.mark.parametrize("beside", [False, True])
def test_tensors_that_can_not_be_seen(kind: Any, beside: bool) -> None:
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    inputs = {"bag": kind(x=x)} | ({"y": x} if beside else {})
    with pytest.raises(aimgraph.ExampleInputError, match=rf"register_pytree_node\({kind.__name__}, \.\.\.\)"):
        aimgraph.transform(OfBags(), inputs)


def test_tensors_in_objects_are_seen_once_their_class_is_registered() -> None:
    class Known(Bag):
        pass

    register_pytree_node(Known, lambda bag: ([bag.x], bag.scale), lambda held, scale: Known(*held, scale))
    base = OfBags()
    inputs = {"bag": Known(torch.linspace(-1, 1, 8).reshape(2, 4))}
    aim = aimgraph.transform(base, inputs, verify="full")
    assert aimgraph.plan(aim).covered == 2
    assert aimgraph.verify(base, aim, inputs).ok
    other = Known(torch.randn(5, 4), 3.0)
    assert torch.equal(aim(other), base(other))
