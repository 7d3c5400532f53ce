"""The forward of a module as lines of Python."""

from collections.abc import Iterator, Sequence

from torch import fx, nn

from aimgraph.source_code.expressions import attribute, expression, text
from aimgraph.source_code.regions import Region
from aimgraph.torch_private import tree_leaves

POOL = ("x", "y", "z", "u", "v", "w", "a", "b", "c", "d", "e")


def body(root: nn.Module, region: Region, given: Sequence[str], result: object = None) -> list[str]:
    """The lines of a forward.

    Args:
        root: Of the graph.
        region: What it computes.
        given: Names of its inputs.
        result: What it returns, in terms of nodes; by default the region's outputs.
    """
    names = dict(zip(region.inputs, given, strict=True))
    left = _last_uses(region, result)
    lines: list[str] = []
    for place, item in enumerate(region.items):
        if isinstance(item, fx.Node) and item.op == "get_attr":
            names[item] = attribute(root, region.path, str(item.target))
            continue
        called = _call(root, region.path, item, names)
        outputs = item.outputs if isinstance(item, Region) else [item]
        if place == len(region.items) - 1 and outputs == _returned(region, result):
            return [*lines, f"return {called}"]
        freed = [name for node, name in names.items() if left.get(node, -1) <= place and name.isidentifier()]
        for node in [node for node in names if left.get(node, -1) <= place]:
            del names[node]
        for node in outputs:
            name = next(one for one in _candidates(freed) if one not in names.values())
            names[node] = name
        used = [node for node in outputs if left.get(node, -1) > place]
        target = ", ".join(names[node] for node in outputs)
        lines.append(f"{target} = {called}" if used or len(outputs) > 1 else called)
    returned = (
        result if result is not None else (region.outputs[0] if len(region.outputs) == 1 else tuple(region.outputs))
    )
    return [*lines, f"return {text(returned, names)}"]


def _returned(region: Region, result: object) -> list[fx.Node] | None:
    if result is None:
        return region.outputs
    return [result] if isinstance(result, fx.Node) else None


def _candidates(freed: Sequence[str]) -> Iterator[str]:
    yield from freed
    yield from POOL
    yield from (f"x{number}" for number in range(1, 10_000))


def _call(root: nn.Module, path: str, item: "fx.Node | Region", names: dict[fx.Node, str]) -> str:
    if isinstance(item, fx.Node):
        return expression(item, root, path, names)
    return f"{attribute(root, path, item.path)}({', '.join(names[node] for node in item.inputs)})"


def _last_uses(region: Region, result: object) -> dict[fx.Node, int]:
    """Node -> the last item that uses its value; beyond all items for what is returned."""
    last: dict[fx.Node, int] = {}
    for place, item in enumerate(region.items):
        for used in item.inputs if isinstance(item, Region) else item.all_input_nodes:
            last[used] = place
    end = len(region.items)
    if result is None:
        last.update(dict.fromkeys(region.outputs, end))
    else:
        last.update((leaf, end) for leaf in tree_leaves(result) if isinstance(leaf, fx.Node))
    return last
