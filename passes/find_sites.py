"""Find every layer that can read a memory, and say why each of the others can't.

Before -> after: the graphs are untouched; the plan gains its sites and skipped layers.

A site is a convolution or linear layer whose output is affine in its input channels, so that
layer([x ; m]; [Wx | Wm]) = layer(x; Wx) + layer(m; Wm). Its grid S is what remains of its input's
shape without the channels and without the batch, and the batch is the one dimension that differs
between two batch sizes.

Declines: layers never called, inside a module that is kept as one call, with a forward of their
own that is not affine, or called where the batch can't be told from the grid.
"""

from collections import Counter
from dataclasses import dataclass, replace

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from aimgraph.layers import LayerKind, classify_layers
from aimgraph.passes.graph_tools import argument
from aimgraph.plan import Site, SiteCall, Skipped
from aimgraph.program import SHAPES, BasePass, PassResult, Program, Stage
from aimgraph.runtime.layers import AffineLayer, groups_of, read_weight_shape

_CalledSites = dict[str, list[SiteCall]]


@dataclass(frozen=True)
class FindSites(BasePass):
    """TRACED -> ANALYSED."""

    requires: Stage = Stage.TRACED

    def run(self, program: Program) -> PassResult:
        """Fill in ``plan.sites`` and ``plan.skipped``."""
        kinds = classify_layers(program.root)
        paths = {m: path for path, m in program.root.named_modules() if m in kinds}
        calls: _CalledSites = {}
        skipped: list[Skipped] = []
        for name, graph in program.graphs.items():
            for node in graph.find_nodes(op="call_module"):
                module = program.root.get_submodule(str(node.target))
                if module not in kinds or not kinds[module].affine:
                    continue
                call = _site_call(name, node, module, program.signature.batch)
                if isinstance(call, SiteCall):
                    calls.setdefault(paths[module], []).append(call)
                else:
                    skipped.append(Skipped(paths[module], kinds[module].name, call))
        partly = {item.path for item in skipped}
        elsewhere = _used_elsewhere(program, kinds)
        sites = tuple(
            _site(
                path,
                module,
                tuple(calls[path]),
                kinds[module].raw,
                _split_only(kinds[module], path in partly, elsewhere.get(module, "")),
            )
            for module, path in paths.items()
            if path in calls
        )
        order = {call: i for i, call in enumerate(calls)}
        for module, path in paths.items():
            if path not in calls and path not in partly:
                skipped.append(Skipped(path, kinds[module].name, _why_not(program, path, kinds[module])))
        plan = replace(
            program.plan,
            layers=len(kinds),
            sites=tuple(sorted(sites, key=lambda site: order[site.path])),
            skipped=tuple(dict.fromkeys(skipped)),
        )
        return PassResult(replace(program, plan=plan, stage=Stage.ANALYSED), False, plan.skipped)


def _site(path: str, layer: nn.Module, calls: tuple[SiteCall, ...], raw: bool, split_only: str) -> Site:
    assert isinstance(layer, AffineLayer)
    taps = 1
    for size in read_weight_shape(layer, 1):
        taps *= size
    if isinstance(layer, nn.Linear):
        channels = (layer.in_features, layer.out_features)
    else:
        channels = (layer.in_channels, layer.out_channels)
    return Site(path, type(layer).__name__, channels, groups_of(layer), taps, calls, raw, split_only)


def _site_call(graph: str, node: fx.Node, layer: nn.Module, batch: int) -> SiteCall | str:
    """The call's layout, or why it can't be told."""
    shapes = argument(node, "input").meta.get(SHAPES)
    if shapes is None:
        return "its input is not a tensor of known shape"
    shape, other = shapes
    rank = len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0
    channel_axis = len(shape) - 1 - rank
    varying = [axis for axis, (a, b) in enumerate(zip(shape, other, strict=True)) if a != b]
    outer = range(channel_axis) if rank else range(len(shape) - 1)
    if len(varying) > 1 or any(axis not in outer for axis in varying):
        return f"its input {list(shape)} changes in dimensions {varying} with the batch size: no one batch dimension"
    batch_axis = varying[0] if varying else (0 if rank and channel_axis else None)
    ratio = _ratio(shape[batch_axis], other[batch_axis], batch) if varying and batch_axis is not None else 0
    grid = tuple(size for axis, size in enumerate(shape) if axis not in (channel_axis, batch_axis))
    if 0 in grid:
        return f"its input {list(shape)} is empty"
    return SiteCall(graph, node.name, tuple(shape), grid, batch_axis, ratio, channel_axis)


def _ratio(size: int, other: int, batch: int) -> int:
    """R where a dimension is r * B at both batch sizes; -1 where it depends on B in another way."""
    ratio = size // batch
    return ratio if (size, other) == (ratio * batch, ratio * (batch + 1)) else -1


def _split_only(kind: LayerKind, partly: bool, elsewhere: str) -> str:
    """Why the layer's weight can't be widened; empty if it can."""
    if kind.raw:
        return "its weight is transformed before use, so it can't be widened"
    if partly:
        return "another call of this layer can't read, so its weight can't be widened"
    return elsewhere


def _used_elsewhere(program: Program, kinds: dict[nn.Module, LayerKind]) -> dict[nn.Module, str]:
    """Layers whose weight something else needs as it is: another module, or the forward itself."""
    owners = Counter(id(p) for m in program.root.modules() for p in m._parameters.values() if p is not None)
    fetched = {str(node.target) for graph in program.graphs.values() for node in graph.find_nodes(op="get_attr")}
    found = {
        m: "its weight belongs to another module, too, so it can't be widened"
        for m in kinds
        if owners[id(m._parameters.get("weight"))] > 1
    }
    for path, module in program.root.named_modules(remove_duplicate=False):
        if module in kinds and f"{path}.weight" in fetched:
            found.setdefault(module, "other code uses its weight, too, so it can't be widened")
    return found


def _why_not(program: Program, path: str, kind: LayerKind) -> str:
    if not kind.affine:
        return kind.reason
    called = {str(n.target) for graph in program.graphs.values() for n in graph.find_nodes(op="call_module")}
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        outer = ".".join(parts[:end])
        if outer in called:
            name = type(program.root.get_submodule(outer)).__name__
            return f"inside {outer} ({name}), which is kept as one call"
    used = {str(n.target) for graph in program.graphs.values() for n in graph.find_nodes(op="get_attr")}
    if f"{path}.weight" in used:
        return "never called as a layer: other code uses its weight"
    return "never called in the forward pass"
