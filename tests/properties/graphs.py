"""Random networks as graphs, built from recipes: several inputs, branches, shared layers, modes, nested outputs."""

from collections import Counter
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from aimgraph.reproducible import plain_attention
from tests.properties import layer_operations, other_operations
from tests.properties.recipes import GRIDS, Op, Recipe, Step, channels

OPS: dict[str, type[Op]] = {
    name: kind
    for module in (layer_operations, other_operations)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Op) and kind is not Op
}


class Dag(nn.Module):
    """The network of a recipe; building it runs every step once, to know its shapes."""

    def __init__(self, recipe: Recipe, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        super().__init__()
        self.recipe = recipe
        self.embed = nn.Embedding(5, 4)
        self.taken: list[tuple[int, ...]] = []
        self.ops = nn.ModuleList()
        values = self.collect(*inputs[0], **inputs[1])
        kinds = ["tok" if kind in ("ids", "table") else kind for kind, _ in recipe.inputs]
        with torch.no_grad():
            for step in recipe.steps:
                self._add(step, kinds, values)
        self.kinds = kinds
        self.head = nn.Linear(channels(kinds[-1], values[-1]), 3)

    def _add(self, step: Step, kinds: list[str], values: list[Tensor]) -> None:
        cls = OPS[step.op]
        fits = [i for i, kind in enumerate(kinds) if kind in cls.takes and values[i][0].numel() < 2000]
        if not fits:
            return
        a = fits[step.a % len(fits)] if step.a else fits[-1]
        second = (kinds[a],) if cls.second == ("same",) else cls.second
        others = [i for i, kind in enumerate(kinds) if kind in second]
        if cls.second and not others:
            return
        b = others[step.b % len(others)] if others else None
        op = cls(step, kinds[a], values[a], None if b is None else values[b], "" if b is None else kinds[b], self)
        self.ops.append(op.eval())
        self.taken.append((a,) if b is None else (a, b))
        values.append(op(*(values[i] for i in self.taken[-1])))
        kinds.append(op.kind_given())

    def collect(
        self,
        first: Tensor,
        second: Tensor | None = None,
        *,
        extra: Tensor | None = None,
        pair: tuple[Tensor, ...] | None = None,
        named: dict[str, Tensor] | None = None,
        scale: float = 1.0,
    ) -> list[Tensor]:
        """The inputs as a list of values."""
        given = {"second": second, "extra": extra}
        values, seen = [first], Counter()
        for place in self.recipe.places:
            if place == "pair":
                assert pair is not None
                values.append(pair[seen[place]])
            elif place == "named":
                assert named is not None
                values.append(named[f"key{seen[place]}"])
            else:
                values.append(given[place])
            seen[place] += 1
        tensors = []
        for (kind, _), value in zip(self.recipe.inputs, values, strict=True):
            x = self.embed(value) if kind == "ids" else value
            tensors.append(x.unsqueeze(0).expand(first.shape[0], -1, -1) if kind == "table" else x * scale)
        return tensors

    def forward(
        self,
        first: Tensor,
        second: Tensor | None = None,
        *,
        extra: Tensor | None = None,
        pair: tuple[Tensor, ...] | None = None,
        named: dict[str, Tensor] | None = None,
        scale: float = 1.0,
    ) -> Any:
        values = self.collect(first, second, extra=extra, pair=pair, named=named, scale=scale)
        for op, taken in zip(self.ops, self.taken, strict=True):
            call = op.forward if op.step.inline else op
            values.append(call(*(values[i] for i in taken)))
        last, kind = values[-1], self.kinds[-1]
        features = last.flatten(2).mean(2) if kind in GRIDS else last.mean(1) if kind == "tok" else last
        logits = self.head(features)
        match self.recipe.output:
            case "tensor":
                return logits
            case "tuple":
                return logits, last
            case "list":
                return [logits, values[len(values) // 2]]
            case "dict":
                return {"logits": logits, "features": (last, None), "size": last.shape[-1]}
        return {"all": tuple(values), "logits": [logits, {"name": "head"}]}


def make_inputs(recipe: Recipe, batch: int, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Random positional and keyword inputs."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for kind, size in recipe.inputs:
        shapes = {
            "vec": (batch, 4),
            "tok": (batch, size, 4),
            "seq": (batch, 4, size),
            "map": (batch, 2, size, 3 + (size + 1) % 5),
            "vol": (batch, 2, 3, 3, 3 + size % 2),
            "table": (size, 4),
        }
        if kind == "ids":
            tensors.append(torch.randint(0, 5, (batch, size), generator=generator))
        else:
            tensors.append(torch.randn(shapes[kind], generator=generator, dtype=torch.float64))
    args, kwargs = tensors[:1], {}
    for place, tensor in zip(recipe.places, tensors[1:], strict=True):
        if place == "second":
            args.append(tensor)
        elif place == "pair":
            kwargs["pair"] = (*kwargs.get("pair", ()), tensor)
        elif place == "named":
            kwargs.setdefault("named", {})[f"key{len(kwargs.get('named', {}))}"] = tensor
        else:
            kwargs[place] = tensor
    return tuple(args), kwargs


def build(recipe: Recipe) -> tuple[Dag, tuple[tuple[Any, ...], dict[str, Any]]]:
    """The network in double precision, and its example inputs."""
    inputs = make_inputs(recipe, recipe.batch, recipe.seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(), plain_attention():
            torch.manual_seed(recipe.seed)
            return Dag(recipe, inputs), inputs
    finally:
        torch.set_default_dtype(default)


INPUT = st.tuples(st.sampled_from(["vec", "tok", "tok", "seq", "map", "map", "vol", "table", "ids"]), st.integers(3, 9))
FIRST = st.tuples(st.sampled_from(["vec", "tok", "seq", "map", "map", "ids"]), st.integers(3, 9))
STEPS = st.builds(
    Step,
    op=st.sampled_from(sorted(OPS)),
    a=st.integers(0, 3),
    b=st.integers(0, 3),
    width=st.sampled_from([4, 2, 6, 3]),
    kernel=st.sampled_from([3, 1, 2]),
    stride=st.sampled_from([1, 1, 2]),
    flag=st.integers(0, 5),
    inline=st.booleans(),
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Networks of one to six steps over one to three inputs."""
    inputs = [draw(FIRST), *draw(st.lists(INPUT, max_size=2))]
    single = ["second", "extra"]
    places = []
    for _ in inputs[1:]:
        place = draw(st.sampled_from([*single, "pair", "named"]))
        if place in single:
            single.remove(place)
        places.append(place)
    return Recipe(
        inputs=tuple(inputs),
        places=tuple(places),
        steps=tuple(draw(st.lists(STEPS, min_size=1, max_size=6))),
        batch=draw(st.sampled_from([2, 1, 3])),
        output=draw(st.sampled_from(["tensor", "tuple", "list", "dict", "all"])),
        seed=draw(st.integers(0, 1000)),
    )
