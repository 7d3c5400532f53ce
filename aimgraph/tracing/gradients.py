"""Which layers no gradient comes back to, whatever they compute: what they read can't be trained.

A layer that runs under ``no_grad``, before ``detach`` or before ``argmax``, or whose output goes nowhere. A forward
with gradients recorded tells, on fake tensors, with a zero added to what every convolution and linear function gives.
It is run only where the graph or the code shows something that could stop a gradient.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from aimgraph.compiler.node_keys import HAS_TENSORS, OVERWRITTEN_BY, VALUE
from aimgraph.compiler.signature import Classified
from aimgraph.fake.faker import Faker, real_twins
from aimgraph.fake.tensors import fake_inputs
from aimgraph.inputs.arguments import Arguments
from aimgraph.reproducible import is_inexact
from aimgraph.runtime.call_names import OPAQUE_BASE, CallNames
from aimgraph.runtime.layer_kinds import is_layer
from aimgraph.runtime.opaque import base_alone
from aimgraph.runtime.recompute import checkpoints_entered
from aimgraph.runtime.regions import enter_context
from aimgraph.torch_private import FakeTensor, tree_leaves, tree_map
from aimgraph.tracing.observe import MODES, Forwards, Observed, surroundings
from aimgraph.tracing.trace import Traced
from aimgraph.tracing.watch_calls import WatchCalls
from aimgraph.user_code import is_users

_FLAT = frozenset(("round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "floor_divide"))
"""Functions whose derivative is zero wherever there is one."""

_STOPS = frozenset(("detach", "argmax", "argmin", "round", "ceil", "trunc", "sign", "sgn", "multinomial", "bucketize"))
"""Operations that stop a gradient and stand in networks for that."""

_STOPPING_NAMES = frozenset(("no_grad", "inference_mode", "set_grad_enabled", "data"))
"""Names in the code of a module that show no operation, and stop a gradient."""


def without_gradient(
    faker: Faker,
    kinds: dict[nn.Module, Classified],
    inputs: Arguments,
    places: frozenset[str],
    traced: Traced,
    observed: dict[str, Observed],
) -> frozenset[str]:
    """Names of the calls that get no gradient in train mode nor in eval mode; none where that can't be told.

    Args:
        faker: Of the base.
        kinds: How its layers can read.
        inputs: What it runs on.
        places: Paths of what is kept as one call.
        traced: Its graphs, with the values of their nodes.
        observed: What it does on the inputs.
    """
    if not places and not _may_stop(faker.root, traced, observed):
        return frozenset()
    called, reached = set[str](), set[str]()
    for mode in MODES:
        forwards = Forwards(faker, kinds, mode, places)
        watch, (args, kwargs) = _Probes(forwards.names), fake_inputs(inputs, faker.mode)
        try:
            with surroundings(faker), torch.enable_grad(), checkpoints_entered(lambda: None):
                with watch, base_alone(forwards.copy):
                    output = forwards.copy.forward(*args, **kwargs)
                reached |= watch.reached((output, _kept_tensors(forwards.copy, places)))
        except Exception:  # whatever the base's own code raises where gradients are recorded
            return frozenset()
        called |= watch.called_ones
    return frozenset(called - reached)


class _Probes(WatchCalls):
    """Adds a zero to what each convolution and linear function gives, and knows afterwards which got a gradient."""

    def __init__(self, names: CallNames) -> None:
        super().__init__(names)
        self.probes: dict[str, Tensor] = {}
        self.unclear: set[str] = set()
        self.cut: set[str] = set()

    @property
    def called_ones(self) -> set[str]:
        """Names of all calls."""
        return {*self.probes, *self.unclear, *self.cut}

    def called(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a function gives, and a zero."""
        result = super().called(name, function, args, kwargs)
        return result if self._counts_itself(self.names.module) else self._probed(name, result)

    def other(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What another function gives; detached where its derivative is zero."""
        result = super().other(function, args, kwargs)
        flat = isinstance(result, Tensor) and getattr(function, "__name__", "") in _FLAT
        return result.detach() if flat else result

    def module_called(self, module: nn.Module, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What a module gives; one that runs on real values in place of fake ones is taken to pass every gradient."""
        result = call(module, *args, **kwargs)
        if next(real_twins(module), None) is not None:
            zero = sum((leaf.sum() * 0 for leaf in _floats((args, kwargs))), torch.zeros(()))
            return tree_map(lambda leaf: leaf + zero.to(leaf.dtype) if _is_float(leaf) else leaf, result)
        return self._probed(self.names.path, result) if self._counts_itself(module) else result

    def _probed(self, name: str, result: Any) -> Any:
        if type(result) is not FakeTensor or not _is_float(result):  # on real values
            (self.unclear if torch.is_grad_enabled() else self.cut).add(name)
            return result
        if name not in self.probes:
            with torch.inference_mode(mode=False):
                self.probes[name] = torch.zeros((), dtype=result.dtype, device=result.device, requires_grad=True)
        return result + self.probes[name]

    def reached(self, outputs: Any) -> set[str]:
        """Names of the calls that gradients of any of these tensors come back to, and of those that are unclear."""
        leaves = [leaf for leaf in _floats(outputs) if leaf.requires_grad]
        if not leaves or not self.probes:
            return set(self.unclear)
        given = torch.autograd.grad(
            leaves, list(self.probes.values()), list(map(torch.ones_like, leaves)), allow_unused=True
        )
        return self.unclear | {name for name, one in zip(self.probes, given, strict=True) if one is not None}


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and is_inexact(leaf)


def _floats(value: Any) -> Iterator[Tensor]:
    """The tensors of a gradient's type in a value, and in objects that torch does not look into."""
    for leaf in tree_leaves(value):
        if _is_float(leaf):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, Tensor | nn.Module | type):
            yield from filter(_is_float, tree_leaves(vars(leaf)))


def _kept_tensors(copy: nn.Module, places: frozenset[str]) -> list[Any]:
    """What a forward keeps on modules that are called as they are: a loss of its own may be found there."""
    parts = dict(copy.named_modules())
    layers = [path for path, part in parts.items() if is_layer(part)]

    def called(path: str) -> bool:
        kept = OPAQUE_BASE in places or any(f"{path}.".startswith(f"{place}.") for place in places)
        return kept or not any(layer.startswith(path and f"{path}.") for layer in layers)

    found = (vars(part) for path, part in parts.items() if called(path))
    return [value for held in found for key, value in held.items() if key[0] != "_"]


def _may_stop(root: nn.Module, traced: Traced, observed: dict[str, Observed]) -> bool:
    """Whether anything shows that could keep a gradient from a layer."""
    names = (one.name.split(".") for seen in observed.values() for one in seen.operations)
    return (
        any(len(name) > 1 and name[1].rstrip("_") in _STOPS for name in names)
        or any(_mentions_stop(kind) for kind in {type(module) for module in root.modules()})
        or any(_stops_in(graph, root) for graph in traced.graphs.values())
    )


def _mentions_stop(kind: type[nn.Module]) -> bool:
    """Whether the forward of a class of modules, or a method that it may call, stops gradients without an operation."""
    waiting, seen = ["forward"], set[str]()
    while waiting:
        name = waiting.pop()
        code = getattr(getattr(kind, name, None), "__code__", None)
        owner = next((one for one in kind.__mro__ if name in vars(one)), kind)
        if name in seen or code is None or owner.__module__.startswith("torch.nn.modules."):
            continue
        seen.add(name)
        if not is_users(code.co_filename) or not _STOPPING_NAMES.isdisjoint(code.co_names):  # decorated by torch
            return True
        waiting += code.co_names
    return False


def _stops_in(graph: fx.Graph, root: nn.Module) -> bool:
    """Whether a graph has a region, or a layer that no path of floating-point tensors leads from to its output."""
    waiting, seen = [graph.output_node()], set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            sources = (*node.all_input_nodes, *node.meta.get(OVERWRITTEN_BY, ()))
            waiting += [one for one in sources if HAS_TENSORS in one.meta or _is_float(one.meta.get(VALUE))]
    calls = (one for one in graph.find_nodes(op="call_module") if is_layer(root.get_submodule(str(one.target))))
    return any(one.target is enter_context for one in graph.nodes) or any(one not in seen for one in calls)
