"""Inputs of another kind or another number of dimensions than the example's."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.errors import ExampleInputError
from aimgraph.runtime.guards import GuardError, kind_of, other_kind
from tests.nets import randomise


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None))


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, more: dict[str, Tensor | None] | None = None) -> Tensor:
        found = None if more is None else more["c"]
        return self.b(x if found is None else x + self.a(found))


class Either(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 3)

    def forward(self, x: Any) -> Tensor:
        if isinstance(x, list | tuple):
            x = x[0] + x[1]
        return self.mix(x)


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 2)

    def forward(self, x: Tensor, t: Any) -> Tensor:
        return self.mix(x * (t.float()[:, None] if torch.is_tensor(t) else float(t)))


IMAGE, ROWS, TOKENS = torch.randn(2, 3, 8, 8), torch.randn(2, 8), torch.randn(2, 5, 8)
CASES: dict[str, tuple[nn.Module, tuple[Any, ...], tuple[Any, ...]]] = {
    "a mask left out": (Attends(), (TOKENS, torch.ones(2, 5, 5).bool()), (TOKENS,)),
    "a mask that is None": (Attends(), (TOKENS, torch.ones(2, 5, 5).bool()), (TOKENS, None)),
    "a dict left out": (Optional(), (ROWS, {"c": ROWS}), (ROWS,)),
    "None in a dict": (Optional(), (ROWS, {"c": ROWS}), (ROWS, {"c": None})),
    "a tensor for a list": (Either(), ([IMAGE, IMAGE],), (IMAGE,)),
    "a list for a tensor": (Either(), (IMAGE,), ([IMAGE, IMAGE],)),
    "a number for a tensor": (Timed(), (ROWS, torch.tensor([1, 2])), (ROWS, 3)),
    "a tensor for a number": (Timed(), (ROWS, 3), (ROWS, torch.tensor([1, 2]))),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("train", [False, True])
def test_inputs_of_another_kind_take_the_base_where_it_goes(name: str, train: bool) -> None:
    base, example, given = CASES[name]
    aim = aimgraph.transform(base, example).train(train)
    with pytest.warns(UserWarning, match="in the example inputs of the transform"):
        assert torch.equal(aim(*given), base.train(train)(*given))
    assert torch.equal(aim(*example), base(*example))
    assert not torch.equal(randomise(aim)(*given), base(*given))  # the reads are there, too


def test_inputs_of_another_kind_are_refused_where_the_base_cannot_stand_in() -> None:
    base, example, given = CASES["a mask that is None"]
    aim = aimgraph.transform(base, example, lowering="concat")
    with pytest.raises(GuardError, match=r"the argument 'mask' holds None where it held Tensor"):
        aim(*given)


MLP = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


class Open(nn.Module):
    """More arguments than it names, as models of transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, *more: Tensor, scale: float = 1.0, **options: Any) -> Any:
        hidden = torch.relu(self.a(x + sum(more)))
        y = self.b(hidden) * scale
        if "shift" in options:
            y = y + options["shift"]
        return (y, hidden) if options.get("output_hidden") else y


OPEN: dict[str, tuple[Any, Any]] = {
    "a flag": ((ROWS,), {"output_hidden": True}),
    "a number": ((ROWS,), {"shift": 2.0}),
    "a tensor": ((ROWS,), {"shift": ROWS[:, :2], "scale": 2.0}),
    "what is never looked at": ((ROWS,), {"num_items_in_batch": torch.tensor(3)}),
    "one more in a row": ((ROWS, ROWS), {}),
}


@pytest.mark.parametrize("name", OPEN)
@pytest.mark.parametrize("train", [False, True])
def test_arguments_that_the_example_did_not_have_take_the_base_where_it_goes(name: str, train: bool) -> None:
    args, kwargs = OPEN[name]
    base = Open().train(train)
    aim = aimgraph.transform(base, ROWS).train(train)
    assert inspect.signature(aim.forward) == inspect.signature(base.forward)
    with pytest.warns(UserWarning, match=r"the example inputs of the transform did not have the argument"):
        plain = aim(*args, **kwargs)
    assert all(map(torch.equal, flat(plain), flat(base(*args, **kwargs))))
    randomise(aim)
    fitting = aimgraph.transform(base, (args, kwargs)).train(train)
    fitting.load_state_dict(aim.state_dict())
    for found, wanted in zip(flat(aim(*args, **kwargs)), flat(fitting(*args, **kwargs)), strict=True):
        torch.testing.assert_close(found, wanted)
    with pytest.warns(UserWarning, match=r"'\w+' holds nothing where it held|the transform (had|did not have) the"):
        found = fitting(ROWS, unknown=1)  # and what the example had may be missing
    torch.testing.assert_close(found, aim(ROWS))


def flat(output: Any) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


def test_an_argument_that_the_base_does_not_take_is_an_error() -> None:
    aim = aimgraph.transform(MLP, ROWS)
    with pytest.raises(TypeError, match="unknown"):
        aim(ROWS, unknown=1)


def test_further_arguments_are_refused_where_the_base_cannot_stand_in() -> None:
    aim = aimgraph.transform(Open(), ROWS, lowering="concat")
    with pytest.raises(GuardError, match=r"did not have the argument 'shift'.*its read weights are part of"):
        aim(ROWS, shift=1.0)


def test_kinds_of_values() -> None:
    kind = kind_of({"a": [torch.zeros(1), None], "b": (1, 2.0), "c": True, "d": object()})
    assert kind == ("dict", {"a": ("list", ("Tensor", "None")), "b": ("tuple", ("number", "number")), "c": "", "d": ""})
    assert other_kind({"a": [torch.ones(2), None, 7], "b": (0.5, 1)}, kind) is None
    assert other_kind({"a": [None, None]}, kind) == ("None", "Tensor")
    assert other_kind({"b": [1, 2]}, kind) == ("list", "tuple")
    assert other_kind("text", "Tensor") == ("str", "Tensor")


CONV = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))


class Squeezes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.conv(x).mean((2, 3), keepdim=True).squeeze())


@pytest.mark.parametrize(
    ("base", "example", "given"),
    [
        (MLP, ROWS, torch.randn(8)),
        (MLP, ROWS, TOKENS),
        (MLP, ROWS, torch.randn(2, 3, 5, 8)),
        (CONV, IMAGE, torch.randn(3, 8, 8)),
        (CONV, IMAGE, torch.randn(3, 9, 7)),
        (Squeezes(), IMAGE, IMAGE[:1]),
    ],
)
def test_another_number_of_dimensions(base: nn.Module, example: Tensor, given: Tensor) -> None:
    aim = aimgraph.transform(base, example)
    assert torch.equal(aim(given), base(given))
    aim = randomise(aim)
    first, last = next(iter(aim.children())), aim(given)
    assert last.shape == base(given).shape
    assert first is not None
    if given.dim() < example.dim() and given.shape[1:] == example.shape[2:]:
        torch.testing.assert_close(last, aim(given.unsqueeze(0))[0])  # one sample of a batch
    if given.dim() > example.dim():
        torch.testing.assert_close(last.flatten(0, -2), aim(given.flatten(0, -2)))  # every position sees the same


def test_a_number_of_dimensions_that_no_view_follows_for_names_the_layer() -> None:
    aim = aimgraph.transform(MLP, TOKENS)
    with pytest.raises(ExampleInputError, match=r"^0 reads its memory in a layout of 3 dimensions.* \[2, 8\] now"):
        aim(ROWS)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_features_of_another_size() -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 4, 3, dtype=torch.cfloat)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.complex(x, x)).abs()

    base = Spectral()
    aim = aimgraph.transform(base, torch.randn(2, 2, 16))
    x = torch.randn(2, 2, 20)
    assert torch.equal(aim(x), base(x))
    assert randomise(aim)(x).isfinite().all()


class Flagged(nn.Module):
    """One call as a whole, with a tuple as a default."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor, flags: tuple[bool, ...] = (True, False)) -> Tensor:
        h = self.linear(x)
        if float(h.detach().sum()) > 1e9:
            h = h + 1
        return h.relu() if flags[0] else h


def test_a_disabled_memory_takes_what_an_enabled_one_takes() -> None:
    base = Flagged().eval()
    aim = randomise(aimgraph.transform(base, ROWS)).eval()
    with pytest.warns(UserWarning, match="'flags' was left at its default"):
        assert not torch.equal(aim(ROWS, flags=(False,)), base(ROWS, flags=(False,)))
    with aimgraph.disable_memory(aim):
        assert torch.equal(aim(ROWS, flags=(False,)), base(ROWS, flags=(False,)))
        assert torch.equal(aim(ROWS), base(ROWS))
