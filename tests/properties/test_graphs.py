"""Random networks as graphs through the whole pipeline: what is built is what the base computes."""

import copy
import pickle
import re
import warnings
from collections import Counter
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

import aimgraph
from aimgraph.reproducible import plain_attention
from tests.nets import FUZZ, Activated, randomise, run
from tests.properties.graphs import Dag, build, make_inputs, recipes
from tests.properties.other_operations import Dropout
from tests.properties.recipes import FUNCTIONS, Recipe


class Count(TorchFunctionMode):
    """Counts the calls of convolution and linear functions by the innermost module that runs."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.paths = {module: path for path, module in root.named_modules()}
        self.stack: list[tuple[nn.Module, Counter[str]]] = [(root, Counter())]
        self.calls: Counter[str] = Counter()
        for module in root.modules():
            if module is not root:
                module.register_forward_pre_hook(lambda m, _: self.stack.append((m, Counter())), prepend=True)
                module.register_forward_hook(lambda *_: self.stack.pop() and None)

    def note(self, name: str) -> None:
        module, counts = self.stack[-1]
        plain = isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and not isinstance(module, Activated)
        path = self.paths[module] if plain else ".".join(filter(None, (self.paths[module], f"{name}_{counts[name]}")))
        counts[name] += 1
        self.calls[path] += 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FUNCTIONS:
            self.note(func.__name__)
        if func is F.multi_head_attention_forward:
            with mock.patch.object(F, "linear", self._linear(F.linear)):
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(self, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            self.note("linear")
            return original(*args, **kwargs)

        return call


def count(base: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], *, train: bool) -> Counter[str]:
    """Name of each call of a layer or function in one forward of an untouched copy -> how often."""
    copied = copy.deepcopy(base).train(train)
    counter = Count(copied)
    with torch.random.fork_rng(), counter:
        copied(*inputs[0], **inputs[1])
    return counter.calls


def call(module: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """What a module gives under a fixed random state."""
    return run(module, *inputs[0], **inputs[1])


def assert_same(seen: Any, expected: Any, what: object) -> None:
    """Equal bit for bit, and nested alike."""
    (seen, spec), (expected, other) = tree_flatten(seen), tree_flatten(expected)
    assert spec == other, what
    for number, (one, two) in enumerate(zip(seen, expected, strict=True)):
        if not isinstance(two, Tensor):
            assert type(one) is type(two), (what, number)
            assert one == two, (what, number)
            continue
        assert (one.shape, one.dtype) == (two.shape, two.dtype), (what, number)
        assert one.requires_grad == two.requires_grad, (what, number)
        assert torch.equal(one.isnan(), two.isnan()), (what, number)
        assert torch.equal(one.nan_to_num(), two.nan_to_num()), (what, number, (one - two).abs().max())


def assert_close(seen: Any, expected: Any, what: object) -> None:
    """Equal up to rounding, and nested alike."""
    (seen, spec), (expected, other) = tree_flatten(seen), tree_flatten(expected)
    assert spec == other, what
    for number, (one, two) in enumerate(zip(seen, expected, strict=True)):
        if isinstance(two, Tensor) and two.is_floating_point():
            assert one.shape == two.shape, (what, number)
            size = max(1.0, float(two.detach().abs().max()))
            assert float((one - two).detach().abs().max()) <= 1e-8 * size, (what, number)


def gradients(module: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, Tensor | None]:
    """Gradients of all inputs and of all parameters outside the memory."""
    leaves = [leaf for leaf in tree_flatten(inputs)[0] if leaf.is_floating_point()]
    fresh = {id(leaf): leaf.clone().requires_grad_() for leaf in leaves}
    module.zero_grad()
    args, kwargs = tree_map(lambda leaf: fresh.get(id(leaf), leaf), inputs)
    outputs = [o for o in tree_flatten(run(module, *args, **kwargs))[0] if isinstance(o, Tensor) and o.requires_grad]
    weighted = [(o * torch.linspace(0.5, 1.5, o.numel(), dtype=o.dtype).reshape(o.shape)).sum() for o in outputs]
    sum(weighted[1:], weighted[0]).backward()
    found = {name: p.grad for name, p in module.named_parameters() if not name.startswith("aim.")}
    return found | {f"input {i}": fresh[id(leaf)].grad for i, leaf in enumerate(leaves)}


def check_identity(base: Dag, aim: nn.Module, recipe: Recipe, *, train: bool) -> None:
    """Outputs, buffers and gradients of the base, at several batch sizes."""
    for batch in (recipe.batch, recipe.batch + 2, 1):
        if batch == 1 and train and any(op.batch_norm for op in base.ops):
            continue
        inputs = make_inputs(recipe, batch, recipe.seed + 1)
        one, other = copy.deepcopy(base).train(train), copy.deepcopy(aim).train(train)
        assert_same(call(other, inputs), call(one, inputs), ("output", train, batch))
        buffers = dict(other.named_buffers())
        for name, value in one.named_buffers():
            assert_same(buffers[name], value, ("buffer", name, train, batch))
        if batch != 1:
            with aimgraph.disable_memory(other):
                assert_same(call(other, inputs), call(one, inputs), ("disabled", train, batch))
            expected, seen = gradients(one, inputs), gradients(other, inputs)
            for name, gradient in expected.items():
                assert (gradient is None) == (seen[name] is None), ("gradient", name, train, batch)
                if gradient is not None:
                    assert_same(seen[name], gradient, ("gradient", name, train, batch))


def check_coverage(base: Dag, aim: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """What the base calls is read at every call or listed with a reason; what it never calls is listed."""
    plan = aimgraph.plan(aim)
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    paths = [path for path, module in base.named_modules() if isinstance(module, layers)]
    called = {mode: count(base, inputs, train=mode == "train") for mode in ("train", "eval")}
    names = {name for calls in called.values() for name in calls}
    skipped = plan.left
    assert all(skipped.values())
    assert not {read.site for _, read in plan.reads} & {item.path for item in plan.skipped}
    unread = {f"ops.{i}.{path}" for i, op in enumerate(base.ops) for path in op.unread}
    recurrent = {path for path, module in base.named_modules() if isinstance(module, nn.GRU)}
    never = set(paths) - names
    assert never | recurrent <= set(skipped), ("not listed", (never | recurrent) - set(skipped))
    allowed = ["is a vector", "a product outside of layers"]  # a function in an inlined step is named after the root
    if ("table", base.recipe.batch) in base.recipe.inputs:
        allowed.append("no one batch dimension")  # a table of as many rows as the batch can't be told from it
    unexpected = {
        path: reason
        for path, reason in skipped.items()
        if path not in never | recurrent | unread and not any(why in reason for why in allowed)
    }
    assert not unexpected, ("skipped", unexpected)
    assert set(plan.called) == names, ("called", set(plan.called) ^ names)
    either = called["train"] | called["eval"]  # inside a leaf, the larger count of both
    for mode, calls in called.items():
        reads: Counter[str] = Counter()
        expected = Counter(calls)
        for memory in plan.memories:
            for read in memory.reads:
                found = [c for c in read.calls if c.graph in (mode, "both")]
                match = re.fullmatch(r"(.*(?:linear|conv\w*\dd)_\d+)_\d+", read.site)
                reads[match[1] if match and read.function else read.site] += len(found)
                if read.opaque and all(call.graph == "both" for call in read.calls):
                    expected[read.site] = either[read.site]
        left = Counter({name: n for name, n in expected.items() if n and name not in skipped})
        reads = Counter({name: n for name, n in reads.items() if n and name not in skipped})
        assert reads == left, ("reads", mode, left - reads, reads - left)


def check_undo_and_copies(base: Dag, aim: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """Strip, the state dict, deepcopy and pickle, with a memory that does something."""
    keys = copy.deepcopy(aim).load_state_dict(base.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert all(key.startswith("aim.") for key in keys.missing_keys)
    copies = [copy.deepcopy(aim)]
    if all(op.pickles for op in base.ops):
        copies.append(pickle.loads(pickle.dumps(aim)))
    for train in (True, False):
        one, stripped = copy.deepcopy(base).train(train), copy.deepcopy(aimgraph.strip(aim)).train(train)
        assert type(stripped) is Dag
        assert_same(call(stripped, inputs), call(one, inputs), ("strip", train))
        expected = call(copy.deepcopy(aim).train(train), inputs)
        for number, copied in enumerate(copies):
            seen = call(copy.deepcopy(copied).train(train), inputs)
            assert_same(seen, expected, (("deepcopy", "pickle")[number], train))


def one_by_one(module: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], recipe: Recipe) -> list[Any]:
    """What a module gives for each sample alone."""
    batch = inputs[0][0].shape[0]
    samples = []
    for i in range(batch):
        places = iter([kind for kind, _ in recipe.inputs])
        tables = {id(leaf) for leaf, kind in zip(ordered(inputs, recipe), places, strict=True) if kind == "table"}
        sample = tree_map(lambda leaf, i=i, t=tables: leaf if id(leaf) in t else leaf[i : i + 1], inputs)
        samples.append(call(module, sample))
    return samples


def ordered(inputs: tuple[tuple[Any, ...], dict[str, Any]], recipe: Recipe) -> list[Tensor]:
    """The inputs in the order of the recipe."""
    args, kwargs = inputs
    found, seen = [args[0]], Counter[str]()
    for place in recipe.places:
        number = seen[place]
        seen[place] += 1
        if place == "second":
            found.append(args[1])
        else:
            given = kwargs[place]
            found.append(given if place == "extra" else given[f"key{number}" if place == "named" else number])
    return found


def check_samples(aim: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], recipe: Recipe) -> None:
    """A static memory gives a sample the same result alone and in a batch."""
    aim.eval()
    with torch.no_grad():
        together = tree_flatten(call(aim, inputs))[0]
        alone = [tree_flatten(sample)[0] for sample in one_by_one(aim, inputs, recipe)]
    for number, whole in enumerate(together):
        if isinstance(whole, Tensor) and whole.shape[0] == len(alone):
            parts = [sample[number] for sample in alone]
            if all(part.shape[0] == 1 for part in parts):
                assert_close(torch.cat(parts), whole, ("one by one", number))


MEMORIES = st.fixed_dictionaries(
    {"shape": st.sampled_from([(3,), (2, 2, 3), (1, 3, 7), "auto"])},
    optional={"read": st.sampled_from(["reshape", "resize"])},
)
SETTINGS = settings(deadline=None, print_blob=True, suppress_health_check=list(HealthCheck))


def check(recipe: Recipe, **memory: Any) -> None:
    """Every property of a static memory in split form."""
    base, inputs = build(recipe)
    state, rng = copy.deepcopy(base.state_dict()), torch.get_rng_state()
    with plain_attention():
        aim = aimgraph.transform(base, inputs, verify="full", **memory)
        assert torch.equal(rng, torch.get_rng_state())
        for name, value in base.state_dict().items():
            assert_same(value, state[name], ("the transform changed", name))
        sample = make_inputs(recipe, recipe.batch + 1, recipe.seed + 2)  # batch norm may refuse a single one
        check_coverage(base, aim, sample)
        for train in (True, False):
            check_identity(base, aim, recipe, train=train)
        randomise(aim, scale=0.2)
        check_undo_and_copies(base, aim, sample)
        check_samples(aim, make_inputs(recipe, 3, recipe.seed + 2), recipe)


def check_forms(recipe: Recipe, **memory: Any) -> None:
    """Split and concat form agree in their outputs, with random read weights; strip undoes the concat form."""
    base, inputs = build(recipe)
    with plain_attention():
        split = randomise(aimgraph.transform(base, inputs, verify="full", **memory), scale=0.2)
        concat = aimgraph.transform(base, inputs, verify="full", lowering="concat", **memory)
        concat.load_state_dict(split.state_dict())
        # dropout draws its mask in the order of memory, and a concatenation can change the layout of its features
        random = any(isinstance(op, Dropout) for op in base.modules())
        for train in (False,) if random else (True, False):
            one, other = copy.deepcopy(split).train(train), copy.deepcopy(concat).train(train)
            inputs = make_inputs(recipe, recipe.batch + 1, recipe.seed + 3)
            assert_close(call(other, inputs), call(one, inputs), ("forms", train))
            plain = copy.deepcopy(base).train(train)
            assert_same(call(aimgraph.strip(copy.deepcopy(concat)).train(train), inputs), call(plain, inputs), "strip")


KNOWN: tuple[str, ...] = ()
"""Messages of defects that are known and not repaired yet; a test that meets one warns. Empty is the aim."""


def warn_if_known(error: aimgraph.AimgraphError, recipe: Recipe) -> None:
    """Warn of a known defect; raise any other error."""
    if not any(message in str(error) for message in KNOWN):
        raise error
    event("known defect")
    warnings.warn(f"known defect, {recipe}: {error}".split("\n")[0], stacklevel=2)


@settings(SETTINGS, max_examples=30 * FUZZ)
@given(recipe=recipes(), memory=MEMORIES)
def test_static_memory(recipe: Recipe, memory: dict[str, Any]) -> None:
    for step in recipe.steps:
        event(f"op {step.op}")
    try:
        check(recipe, **memory)
    except aimgraph.TraceError as error:
        warn_if_known(error, recipe)


@pytest.mark.slow
@settings(SETTINGS, max_examples=15 * FUZZ)
@given(recipe=recipes(), memory=MEMORIES)
def test_concat_form(recipe: Recipe, memory: dict[str, Any]) -> None:
    try:
        check_forms(recipe, **memory)
    except aimgraph.TraceError as error:
        warn_if_known(error, recipe)
