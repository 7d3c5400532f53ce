"""The forward of a module as lines of Python."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx, nn

from aimgraph.runtime.regions import enter_context, leave_context
from aimgraph.source_code.expressions import attribute, context, expression, sign_of, text
from aimgraph.source_code.layout import MARK
from aimgraph.source_code.loops import Repeated, outputs_of, repeated
from aimgraph.source_code.owners import IN_PLACE, NAMED, NESTED, WORDS
from aimgraph.source_code.regions import Region
from aimgraph.torch_private import tree_leaves

Shape = Callable[[fx.Node], str]

POOL = ("x", "y", "z", "u", "v", "w", "a", "b", "c", "d", "e")


def body(
    root: nn.Module, region: Region, given: Sequence[str], result: object = None, shape: Shape = lambda _: ""
) -> list[str]:
    """The lines of a forward, each with the shape of what it gives behind a `MARK`.

    Args:
        root: Of the graph.
        region: What it computes.
        given: Names of its inputs.
        result: What it returns, in terms of nodes; by default the region's outputs.
        shape: Of what a node gives, in words; empty for what is no tensor.
    """
    return _Body(root, region, result, dict(zip(region.inputs, given, strict=True)), shape).written()


@dataclass
class _Body:
    root: nn.Module
    region: Region
    result: object
    names: dict[fx.Node, str]
    shape: Shape
    lines: list[str] = field(default_factory=list)
    depth: int = 0

    def written(self) -> list[str]:
        """The lines, the last of which returns something."""
        items, left = self.region.items, _last_uses(self.region, self.result)
        _nest_sizes(items, left)
        done = 0
        for place, item in enumerate(items):
            if place < done or (isinstance(item, fx.Node) and (self._inside(item) or self._context(item))):
                continue
            if (run := repeated(self.root, self.region.path, items[place:])) and self._loop(run, place, left):
                done = place + len(run.items)
                continue
            outputs = outputs_of(item)
            in_place = isinstance(item, fx.Node) and IN_PLACE in item.meta
            if place == len(items) - 1 and outputs == self._returned() and not in_place:
                return [*self.lines, f"return {self._call(item)}"]
            gone = [node for node in self.names if left.get(node, -1) <= place]
            if in_place:
                self._add(item)
            else:
                self._assign(item, gone, [node for node in outputs if left.get(node, -1) > place])
            for node in gone:
                self.names.pop(node, None)
        outputs = self.region.outputs
        returned = self.result if self.result is not None else outputs[0] if len(outputs) == 1 else tuple(outputs)
        return [*self.lines, f"return {text(returned, self.names)}"]

    def _loop(self, run: Repeated, place: int, left: Mapping[fx.Node, int]) -> bool:
        """Write calls one after the other as a loop, if the value that goes through them has one name."""
        through, end = run.values[:-1], place + len(run.items) - 1
        if any(left.get(one, -1) != place + number for number, one in enumerate(through)):
            return False
        if any(left.get(one, -1) < end for one in run.others) or end == len(self.region.items) - 1:
            return False
        one = run.name if run.name not in self.names.values() else f"{run.name}_"
        name = self.names.pop(through[0])
        given = ", ".join([name, *(self.names[other] for other in run.others)])
        where = attribute(self.root, self.region.path, run.container) + run.slice
        self._put(f"for {one} in {where}:")
        self._line(f"    {name} = {one}({given})", run.values[1:])
        self.names = {node: kept for node, kept in self.names.items() if left.get(node, -1) > end}
        self.names[run.values[-1]] = name
        return True

    def _line(self, line: str, gives: Sequence[fx.Node]) -> None:
        shapes = set(map(self.shape, gives))
        self._put(f"{line}{MARK}{shapes.pop()}" if len(shapes) == 1 else line)

    def _context(self, item: fx.Node) -> bool:
        """Whether a node begins or ends a ``with`` block."""
        if item.target is enter_context:
            self._put(f"with {context(item, self.names)}:")
            self.depth += 1
        elif item.target is leave_context:
            self.depth -= 1
            if self.lines[-1].lstrip().startswith("with "):  # nothing stands in it
                self.lines.pop()
        return item.target in (enter_context, leave_context)

    def _put(self, line: str) -> None:
        self.lines.append(f"{'    ' * self.depth}{line}")

    def _inside(self, item: fx.Node) -> bool:
        """Whether an expression stands where it is used."""
        if item.op == "get_attr":
            self.names[item] = attribute(self.root, self.region.path, str(item.target))
        elif NESTED in item.meta and len(called := self._call(item)) <= _NESTED:
            self.names[item] = called
        return item in self.names

    def _assign(self, item: "fx.Node | Region", gone: Sequence[fx.Node], used: Sequence[fx.Node]) -> None:
        called, outputs = self._call(item), outputs_of(item)
        freed = [self.names[node] for node in gone if self.names[node].isidentifier()]
        for node in gone:
            del self.names[node]
        for node in outputs:
            self.names[node] = next(one for one in candidates(node, freed) if one not in self.names.values())
        target = ", ".join(self.names[node] for node in outputs)
        if used or len(outputs) > 1:
            self._line(f"{target} = {called}", outputs[:1] if len(outputs) == 1 else [])
        else:
            self._put(called)

    def _add(self, item: "fx.Node | Region") -> None:
        assert isinstance(item, fx.Node)
        summand, term = item.args
        self.names[item] = text(summand, self.names)
        self._line(f"{self.names[item]} {sign_of(item)}= {text(term, self.names)}", [item])

    def _call(self, item: "fx.Node | Region") -> str:
        if isinstance(item, fx.Node):
            return expression(item, self.root, self.region.path, self.names)
        called = attribute(self.root, self.region.path, item.path)
        return f"{called}({', '.join(self.names[node] for node in item.inputs)})"

    def _returned(self) -> list[fx.Node] | None:
        if self.result is None:
            return self.region.outputs
        return [self.result] if isinstance(self.result, fx.Node) else None


def _nest_sizes(items: Sequence["fx.Node | Region"], left: dict[fx.Node, int]) -> None:
    """Let sizes stand where they are used, ``x.shape[0]``, unless the tensor is gone by then: its shape has a name.

    Args:
        items: Of a forward.
        left: Node -> the last item that uses its value; changed to match.
    """
    sizes = [item for item in items if isinstance(item, fx.Node) and of_sizes(item)]
    for node in sizes:
        held = node.all_input_nodes[0]
        if node.target is operator.getitem or left.get(held, -1) >= left.get(node, -1):
            node.meta[NESTED] = True
    for node in reversed(sizes):
        held = node.all_input_nodes[0]
        if NESTED in node.meta:
            left[held] = max(left.get(held, -1), left.get(node, -1))


def of_sizes(node: fx.Node) -> bool:
    """Whether a node asks for the sizes of a tensor, or takes some of them."""
    if node.target is operator.getitem:
        held = node.args[0]
        return isinstance(held, fx.Node) and of_sizes(held) and not isinstance(node.args[1], fx.Node)
    return (node.target is getattr and node.args[1] == "shape") or (node.target == "size" and node.op == "call_method")


_NESTED = 60
"""Columns of what stands inside another expression, at most."""


def input_names(nodes: Sequence[fx.Node]) -> list[str]:
    """Names for the inputs of a forward."""
    found: list[str] = []
    for node in nodes:
        found.append(next(one for one in candidates(node) if one not in found))
    return found


def candidates(node: fx.Node, freed: Sequence[str] = ()) -> Iterator[str]:
    """Names for a value, the best first.

    Args:
        node: What gives it.
        freed: Names that nothing needs any more.
    """
    word = node.meta.get(NAMED)
    if word is not None:
        yield from (name for name in freed if name.rstrip("0123456789") == word)
        yield from (word, *(f"{word}{number}" for number in range(2, 10_000)))
    yield from (name for name in freed if name.rstrip("0123456789") not in WORDS)
    yield from POOL
    yield from (f"x{number}" for number in range(1, 10_000))


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
