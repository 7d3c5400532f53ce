"""Find every layer that can read a memory, and say why each of the others can't.

Before -> after: the graphs are untouched; the plan gains its sites and skipped layers.

A site is a convolution or linear layer whose output is affine in its input channels, so that
layer([x ; m]; [Wx | Wm]) = layer(x; Wx) + layer(m; Wm), or a call of ``F.conv2d``, ``F.linear`` or
their like by some other code. Its grid S is what remains of its input's shape without the channels
and without the batch, and the batch is the one dimension that differs between two batch sizes. A
convolution whose groups grow with the batch treats every sample as a group: S is its grid, too.

Declines: layers never called, inside a module that is traced as one call, with a forward of their
own that is not affine, or called where the batch can't be told from the grid; functions whose
weight is a vector or features of a batch; calls inside a custom autograd function; products of features and a
parameter by other functions. Recurrent, bilinear and scripted layers are listed.
"""

import operator
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from aimgraph.compiler.flow import flow_of
from aimgraph.compiler.graph_text import target_name
from aimgraph.compiler.graph_tools import argument, called_module, function_layer, groups_batch, options, site_layer
from aimgraph.compiler.node_keys import CALL, SHAPES
from aimgraph.compiler.program import BasePass, PassResult, Program, Stage
from aimgraph.compiler.signature import Classified, FunctionCall
from aimgraph.planning.layout import Shapes, call_layout, kernel_taps, unfit
from aimgraph.planning.sites import Site, SiteCall, Skipped
from aimgraph.runtime.call_names import OPAQUE_BASE
from aimgraph.runtime.layer_kinds import FUNCTIONS, function_name, is_layer, kind_of
from aimgraph.runtime.layers import groups_of, read_weight_shape
from aimgraph.runtime.memory import free_name
from aimgraph.runtime.read_layers import own_methods

LEFT_ALONE: dict[type[nn.Module], str] = {
    nn.RNNBase: "recurrent layers are left as they are",
    nn.RNNCellBase: "recurrent layers are left as they are",
    nn.Bilinear: "bilinear layers are left as they are",
}
"""Layers that are no convolution and no linear layer, but hold products of weights and features."""


PRODUCTS = frozenset(
    (
        *(operator.matmul, torch.matmul, torch.mm, torch.bmm, torch.mv, torch.addmm, torch.baddbmm, torch.einsum),
        *(torch.tensordot, torch.inner, F.bilinear, "matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "inner"),
    )
)
"""Functions and methods that multiply matrices, where one of them may be a weight."""


@dataclass(frozen=True)
class FindSites(BasePass):
    """TRACED -> ANALYSED."""

    requires: Stage = Stage.TRACED
    ensures: Stage = Stage.ANALYSED

    def run(self, program: Program) -> PassResult:
        """Fill in ``plan.sites``, ``plan.skipped``, ``plan.flow`` and the counts of layers present and called."""
        finder = _Finder(program, program.kinds)
        for name, graph in program.graphs.items():
            for node in graph.nodes:
                finder.visit(name, node)
        called = dict.fromkeys(name for calls in program.signature.calls.values() for name in calls.counts)
        left = tuple(dict.fromkeys((*finder.skipped, *finder.left_alone(called))))
        partly: dict[str, list[str]] = {site: [] for site in finder.calls}
        for item in left:
            partly.get(item.path, []).append(item.reason)
        plan = replace(
            program.plan,
            layers=len(finder.kinds),
            called=tuple(called),
            sites=tuple(
                replace(site, left=tuple(partly[site.path]), gradient=_has_gradient(site, program))
                for site in finder.sites()
            ),
            skipped=tuple(item for item in left if item.path not in partly),
        )
        plan = replace(plan, flow=flow_of(program.graphs, plan.sites, plan.skipped, program.signature))
        return PassResult(replace(program, plan=plan), False, plan.skipped)


@dataclass
class _Finder:
    """Collects the calls of one program by the layer or function that they belong to."""

    program: Program
    kinds: dict[nn.Module, Classified]
    calls: dict[str, list[SiteCall]] = field(default_factory=dict)
    layers: dict[str, nn.Module] = field(default_factory=dict)
    functions: dict[str, Any] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)
    turns: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    stand_ins: dict[str, nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = dict(self.program.root.named_modules())
        self.parameters = {name for name, _ in self.program.root.named_parameters(remove_duplicate=False)}
        self.paths = {m: path for path, m in self.program.root.named_modules() if m in self.kinds}

    def visit(self, graph: str, node: fx.Node) -> None:
        """Note what `node` calls, if that is a layer or function that could read."""
        layer = called_module(self.program.root, node)
        if layer is not None:
            if str(node.target) in self.program.signature.opaque:
                self._enter(graph, node)
            elif layer in self.kinds and self.kinds[layer].affine:
                self._note(graph, node, self.paths[layer], self.kinds[layer].name)
        elif node.op == "call_function" and node.target in FUNCTIONS and CALL in node.meta:
            self._note(graph, node, node.meta[CALL], function_name(node.target))
        elif node.target in PRODUCTS:
            self._note_product(node)

    def _note_product(self, node: fx.Node) -> None:
        """List a product of features and a parameter: a layer in all but name, which does not read."""
        if not any(_goes_by_batch(operand) for operand in node.all_input_nodes):
            return
        kind, why = target_name(node), "a product outside of layers: only F.linear's weight reads"
        self.skipped += [Skipped(path, kind, why) for path in sorted(_fixed_sources(node) & self.parameters)]

    def _note(self, graph: str, node: fx.Node, path: str, kind: str) -> None:
        self.reached.add(path)
        self.found.update((mode, path) for mode in _modes(graph))
        call = _site_call(graph, node, self.program)
        turn = self._turn(graph, path, len((_shapes(argument(node, "input")) or ((),))[0]))
        if isinstance(call, str):
            self.skipped.append(Skipped(path, kind, call))
            return
        layer = site_layer(self.program.root, node, self.program.signature.batch)
        output = node.meta[SHAPES][0]
        places = kind_of(layer).places(layer, call.grid, output)
        call = replace(call, name=path, turn=turn, output=output, places=places)
        if node.op == "call_function":
            path = self._place(path, node, layer)
        self.layers.setdefault(path, layer)
        self.calls.setdefault(path, []).append(call)

    def _turn(self, *called: Any) -> int:
        """Count a call, and say how many there were before it in the same graph, of the same name, and so on."""
        self.turns[called] += 1
        return self.turns[called] - 1

    def _enter(self, graph: str, node: fx.Node) -> None:
        """Note what is called inside a module that is kept as one call.

        A graph may be one for both modes though what is called inside the module is not: it reads in either.
        """
        opaque = str(node.target)
        turn = self._turn(graph, opaque)
        calls, again = self.program.signature.calls, self.program.signature.again
        seen: dict[str, int] = {}
        for mode in sorted(_modes(graph), key=lambda one: again[one].failed is not None):
            for name, made in calls[mode].made.items():
                mine = [call for call in made if call.opaque == (opaque, turn)]
                others = [call for call in again[mode].made.get(name, ()) if call.opaque == (opaque, turn)]
                if mine:
                    self.found[mode, name] += len(mine)
                    if again[mode].failed is None or seen.get(name) != len(mine):  # what ran in the other mode tells
                        self._note_inner(graph, node, name, mine, others, ran=again[mode].failed is None)
                    seen[name] = len(mine)

    def _note_inner(
        self, graph: str, node: fx.Node, name: str, made: list[FunctionCall], others: list[FunctionCall], *, ran: bool
    ) -> None:
        self.reached.add(name)
        module = self.modules.get(name)
        layer = module if is_layer(module) else None
        called = made[0].function if layer is None else self.kinds[layer].name
        calls: list[SiteCall | str]
        if layer is not None and not self.kinds[layer].affine:
            calls = [self.kinds[layer].reason]
        elif not ran:
            calls = [f"called {len(made)} times in one of the modes, in which the model takes one batch size only"]
        elif len(others) != len(made):
            calls = [f"called {len(made)} times at one batch size and {len(others)} times at another"]
        else:
            pairs = zip(made, others, strict=True)
            calls = [self._inner_call(graph, node, name, one, other, layer) for one, other in pairs]
            why = next((call for call in calls if isinstance(call, str)), "")
            if why and layer is not None and len(calls) > 1:  # told apart by their order alone
                calls = [f"of its {len(calls)} calls inside {node.target}, one can't read: {why}"]
        known = Counter(self.calls.get(name, ()))
        for call in calls:
            if isinstance(call, str):
                self.skipped.append(Skipped(name, called, call))
            elif known[call] > 0:
                known[call] -= 1
            else:
                self.layers.setdefault(name, layer or self.stand_ins[name])
                self.calls.setdefault(name, []).append(call)

    def _inner_call(
        self, graph: str, node: fx.Node, name: str, one: FunctionCall, other: FunctionCall, layer: nn.Module | None
    ) -> SiteCall | str:
        """A call of a layer or function inside a module that is kept as one call, or why it can't read."""
        opaque, signature = str(node.target), self.program.signature
        batch, batches = signature.batch, (signature.batch, signature.second)
        if one.hidden:
            return f"inside {one.hidden}.forward, whose own backward would know nothing of it"
        grouped_batch = layer is None and one.groups != other.groups
        if layer is None:
            why = unfit((one.weight, other.weight), grouped_batch=grouped_batch)
            if why:
                return why
            layer = function_layer(getattr(F, one.function), one.weight, one.groups, batch if grouped_batch else 1)
            key = (one.function, read_weight_shape(layer, 1), one.parameter)
            if self.functions.setdefault(name, key)[:2] != key[:2]:
                return f"called with weights of other shapes than {list(one.weight)}, too"
            self.stand_ins[name] = layer
        chance, shapes = self.program.signature.opaque[opaque].needs_values, (one.input, other.input)
        call = call_layout(graph, node, shapes, layer, batches, chance=chance, grouped_batch=grouped_batch)
        if isinstance(call, str):
            return call
        assert one.opaque is not None
        places = kind_of(layer).places(layer, call.grid, one.output)
        return replace(call, opaque=opaque, name=name, turn=one.opaque[1], output=one.output, places=places)

    def _place(self, path: str, node: fx.Node, layer: nn.Module) -> str:
        """The site that a function's call belongs to: one per function, shape of Wm, and weight."""
        assert callable(node.target)
        key = (function_name(node.target), read_weight_shape(layer, 1), _origin(options(node)["weight"]))
        return free_name(path, lambda place: bool(self.functions.setdefault(place, key) == key))

    def sites(self) -> tuple[Site, ...]:
        """Everything that can read, in graph order."""
        partly = {item.path for item in self.skipped}
        elsewhere = _used_elsewhere(self.program, self.kinds)
        found = []
        for path, layer in self.layers.items():
            calls = tuple(self.calls[path])
            size = kind_of(layer).channels(layer), groups_of(layer), kernel_taps(layer)
            if path in self.functions:
                name, why = self.functions[path][0], "a function is called, there is no layer to widen"
                found.append(Site(path, name, *size, calls, raw=True, split_only=why, function=True))
                continue
            kind = self.kinds[layer]
            site, why = Site(path, kind.name, *size, calls, raw=kind.raw), elsewhere.get(layer, "")
            if kind.raw:
                why = "its weight is transformed before use, so it can't be widened"
            elif methods := own_methods(type(layer)).keys() & _OF_WEIGHT:
                why = f"its class has {' and '.join(sorted(methods))} of its own, which may set its weight"
            elif path in partly:
                why = "another call of this layer can't read, so its weight can't be widened"
            elif site.opaque:
                name = "the model" if site.opaque == OPAQUE_BASE else site.opaque
                why = f"inside {name}, which can't be traced"
            found.append(replace(site, split_only=why))
        return tuple(found)

    def left_alone(self, called: dict[str, None]) -> list[Skipped]:
        """Layers that do not read, recurrent layers, and calls that stand in no graph, with the reasons."""
        program = self.program
        silent = [(path, self.kinds[layer]) for layer, path in self.paths.items() if path not in self.reached]
        listed = [Skipped(path, kind.name, _why_not(program, path, kind)) for path, kind in silent]
        known = {item.path for item in listed}
        lost = [name for name in called if name not in self.reached and name not in known]
        listed += [Skipped(name, "function", _why_not(program, name, None)) for name in lost]
        for mode, calls in program.signature.calls.items():
            for name, made in calls.made.items():
                if name in self.reached and len(made) > self.found[mode, name]:
                    why = f"{len(made) - self.found[mode, name]} of its {len(made)} calls are in no graph"
                    listed.append(Skipped(name, made[0].function, why))
        for path, module in program.root.named_modules():
            why = next((why for kind, why in LEFT_ALONE.items() if isinstance(module, kind)), "")
            if why:
                listed.append(Skipped(path, type(module).__name__, why))
            outer = program.root.get_submodule(path.rpartition(".")[0])
            if isinstance(module, torch.jit.ScriptModule) and not isinstance(outer, torch.jit.ScriptModule):
                listed.append(Skipped(path, str(module.original_name), "scripted: the layers in it can't be seen"))
        packed = [(p, m) for p, m in program.root.named_modules() if "nn.quantized.dynamic" in type(m).__module__]
        why = "quantised: its weight is packed integers, and no memory can be added to it; quantise after the transform"
        return listed + [Skipped(path, type(module).__name__, why) for path, module in packed if path not in known]


_OF_WEIGHT = frozenset(("train", "eval", "_apply", "_load_from_state_dict", "_save_to_state_dict"))
"""Methods of a layer's class that may merge something into its weight, or take it apart."""


def _modes(graph: str) -> tuple[str, ...]:
    return ("eval", "train") if graph == "both" else (graph,)


def _shapes(value: Any) -> Shapes | None:
    """Those of a tensor in a graph at two batch sizes, as far as they are known."""
    return value.meta.get(SHAPES) if isinstance(value, fx.Node) else None


def _goes_by_batch(node: fx.Node) -> bool:
    first, second = node.meta.get(SHAPES, ((), ()))
    return bool(first != second)


def _fixed_sources(product: fx.Node) -> set[str]:
    """What a product's operands are computed from, apart from features of a batch."""
    waiting, seen = list(product.all_input_nodes), set()
    while waiting:
        node = waiting.pop()
        if node not in seen and not _goes_by_batch(node):
            seen.add(node)
            waiting += node.all_input_nodes
    return {str(node.target) for node in seen if node.op == "get_attr"}


def _origin(weight: Any) -> str:
    """Name of the parameter that a weight is, or none if it is computed."""
    return str(weight.target) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ""


def _site_call(graph: str, node: fx.Node, program: Program) -> SiteCall | str:
    """The call's layout, or why it can't be told."""
    grouped_batch = node.op == "call_function" and groups_batch(node)
    if node.op == "call_function":
        weight = _shapes(options(node)["weight"])
        if weight is None:
            return "its weight is not a tensor of known shape"
        why = unfit(weight, grouped_batch=grouped_batch)
        if why:
            return why
    shapes = _shapes(argument(node, "input"))
    if shapes is None:
        return "its input is not a tensor of known shape"
    layer = site_layer(program.root, node, program.signature.batch)
    batches = program.signature.batch, program.signature.second
    return call_layout(graph, node, shapes, layer, batches, grouped_batch=grouped_batch, chance=False)


def _has_gradient(site: Site, program: Program) -> bool:
    """Whether a gradient may come back to it: of the base's output, or of a memory that it is written to."""
    updates = any(config.updates for config in program.configs)
    return updates or any(call.name not in program.signature.untrained for call in site.calls)


def _used_elsewhere(program: Program, kinds: dict[nn.Module, Classified]) -> dict[nn.Module, str]:
    """Layers whose weight something else needs as it is: another module, or the forward itself."""
    owners = Counter(id(p) for m in program.root.modules() for p in m._parameters.values() if p is not None)
    fetched = {str(node.target) for graph in program.graphs.values() for node in graph.find_nodes(op="get_attr")}
    shared = "its weight belongs to another module, too, so it can't be widened"
    found = {m: shared for m in kinds if owners[id(m._parameters.get("weight"))] > 1}
    for path, module in program.root.named_modules(remove_duplicate=False):
        if module in kinds and f"{path}.weight" in fetched:
            found.setdefault(module, "other code uses its weight, too, so it can't be widened")
    return found


def _why_not(program: Program, path: str, kind: Classified | None) -> str:
    if kind is not None and not kind.affine:
        calls = {name for seen in program.signature.calls.values() for name in seen.counts}
        entered = kind.enter and any(name.startswith(f"{path}.") for name in calls)
        return f"{kind.reason}: entered, what it calls is a site of its own" if entered else kind.reason
    called = {str(n.target) for graph in program.graphs.values() for n in graph.find_nodes(op="call_module")}
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        outer = ".".join(parts[:end])
        if outer in called and outer not in program.signature.opaque:
            name = type(program.root.get_submodule(outer)).__name__
            return f"inside {outer} ({name}), which is kept as one call"
    used = {str(n.target) for graph in program.graphs.values() for n in graph.find_nodes(op="get_attr")}
    if f"{path}.weight" in used:
        return "never called as a layer: other code uses its weight"
    return "never called in the forward pass" if kind is not None else "called, but not in the traced graph"
