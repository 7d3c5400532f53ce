"""The classes of a module's source: what each holds, and its forward."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from aimgraph.source_code.constructors import constructor, is_kept
from aimgraph.source_code.expressions import is_named_tuple, text
from aimgraph.source_code.forwards import body, input_names
from aimgraph.source_code.inline import Traced
from aimgraph.source_code.members import layer_dtype, modes, ties, whole_dtype
from aimgraph.source_code.parameters import Skeletons
from aimgraph.source_code.regions import Region, is_chain, regions

INDENT = "    "


@dataclass
class Classes:
    """The classes that are written, the ones that others need before these.

    Attributes:
        subject: The module and its graphs.
        forwards: Mode -> path -> the region that a module's forward is.
        results: Mode -> what the root's forward returns, in terms of nodes.
        written: The classes so far.
        imported: Names of classes that are imported -> where from.
    """

    subject: Traced
    forwards: Mapping[str, Mapping[str, Region]]
    results: Mapping[str, object]
    written: Skeletons = field(default_factory=Skeletons)
    imported: dict[str, str] = field(default_factory=dict)

    @property
    def root(self) -> nn.Module:
        """The module."""
        return self.subject.root

    def made(self, path: str) -> str:
        """The expression that makes the module at a path; its class is written if there is none like it."""
        module = self.root.get_submodule(path)
        if isinstance(module, nn.Sequential) and self._is_sequence(path, module):
            return self._listed("nn.Sequential", path, module)
        if type(module) in (nn.ModuleList, nn.ModuleDict, nn.Sequential):
            return self._listed(f"nn.{type(module).__name__}", path, module)
        if path in self.subject.opaque:
            self.imported[type(module).__name__] = type(module).__module__
            return constructor(module)
        dtype = layer_dtype(self.root, module)
        if is_kept(module) and (path not in self._called() or not any(module.children())):
            return constructor(module) + (f".to({dtype})" if dtype else "")
        return self._class(path, module)

    def text(self) -> str:
        """All classes, the module's own last; a sequence is a class of its own."""
        module = self.root
        last = ""
        if isinstance(module, nn.Sequential) and self._is_sequence("", module):
            made = self._listed("nn.Sequential", "", module)
            inner = self.written.resolved(made.removeprefix("nn.Sequential(").removesuffix(")"))
            lines = [
                "def __init__(self) -> None:",
                f"{INDENT}super().__init__({inner})",
                *ties(module),
                *whole_dtype(module),
                *modes(module),
            ]
            last = f"class {class_name(module)}(nn.Sequential):\n" + _indented(lines)
        else:
            self._class("", module)
        bases = {one.name: one.base for one in self.written.all}
        texts = [f"class {name}({bases[name]}):\n{code}" for name, code in self.written.texts()]
        graphs = self.subject.graphs.values()
        kinds = dict.fromkeys(kind for graph in graphs for node in graph.nodes for kind in _named_tuples(node))
        return "\n\n\n".join([*map(_named_tuple, kinds), *texts, *([last] if last else [])])

    def _called(self) -> set[str]:
        return {path for regions in self.forwards.values() for path in regions}

    def _is_sequence(self, path: str, module: nn.Sequential) -> bool:
        """Whether a subclass of `nn.Sequential` is one: it has nothing else, and runs as one."""
        plain = not module._parameters and not module._buffers
        return plain and all(is_chain(regions[path], module) for regions in self.forwards.values() if path in regions)

    def _listed(self, kind: str, path: str, module: nn.Module) -> str:
        names = list(module._modules)
        made = [self.made(f"{path}.{name}".lstrip(".")) for name in names]
        if kind == "nn.ModuleDict" or names != [str(number) for number in range(len(names))]:
            pairs = ", ".join(f'"{name}": {one}' for name, one in zip(names, made, strict=True))
            return f"{kind}({{{pairs}}})" if kind == "nn.ModuleDict" else f"{kind}(OrderedDict({{{pairs}}}))"
        inner = ", ".join(_repeated(made))
        return f"{kind}([{inner}])" if kind == "nn.ModuleList" else f"{kind}({inner})"

    def _class(self, path: str, module: nn.Module) -> str:
        """How the class of a module is called."""
        init, forward = list(self._init(path, module)), list(self._forward(path))
        lines = [*init, *forward] if init[1:] != _EMPTY or not forward else forward[1:]
        base = "nn.Sequential" if isinstance(module, nn.Sequential) else "nn.Module"
        return self.written.call(_indented([*lines, *([] if path else modes(module))]), class_name(module), base)

    def _init(self, path: str, module: nn.Module) -> Iterator[str]:
        yield "def __init__(self) -> None:"
        members = list(module._modules)
        if isinstance(module, nn.Sequential):
            members = [name for name in members if not name.isdigit()]
            given = [self.made(f"{path}.{name}".lstrip(".")) for name in module._modules if name not in members]
            yield f"{INDENT}super().__init__({', '.join(_repeated(given))})"
        else:
            yield f"{INDENT}super().__init__()"
        for name, parameter in module._parameters.items():
            value = None if parameter is None else f"nn.Parameter({_empty(parameter)})"
            yield f"{INDENT}self.{name} = {value}"
        for name, buffer in module._buffers.items():
            yield f'{INDENT}self.register_buffer("{name}", {None if buffer is None else _empty(buffer)})'
        for name in members:
            if module._modules[name] is not None:
                made = self.made(f"{path}.{name}".lstrip("."))
                own = f"self.{name} = {made}" if name.isidentifier() else f'self.add_module("{name}", {made})'
                yield INDENT + own
        if not path:
            yield from ties(module)
            yield from whole_dtype(module)

    def _forward(self, path: str) -> Iterator[str]:
        found = {mode: regions[path] for mode, regions in self.forwards.items() if path in regions}
        texts = {mode: self._lines(path, mode, region) for mode, region in found.items()}
        if not texts:
            return
        if len({tuple(lines) for lines in texts.values()}) == 1:
            yield from ("", *next(iter(texts.values())))
            return
        first = next(iter(found.values()))
        given = ", ".join(self._given(path, first))
        yield ""
        yield f"def forward({self._signature(path, first)}):"
        yield f"{INDENT}return self._train({given}) if self.training else self._eval({given})"
        for mode, lines in texts.items():
            yield ""
            yield lines[0].replace("def forward(", f"def _{mode}(")
            yield from lines[1:]

    def _given(self, path: str, region: Region) -> list[str]:
        return input_names(region.inputs) if path else [str(node.target) for node in region.inputs]

    def _lines(self, path: str, mode: str, region: Region) -> list[str]:
        given = self._given(path, region)
        result = None if path else self.results[mode]
        lines = body(self.root, region, given, result, lambda node: self.subject.shape(node, mode))
        return [f"def forward({self._signature(path, region)}):", *(INDENT + line for line in lines)]

    def _signature(self, path: str, region: Region) -> str:
        """The module and the inputs, with what the root's are by default."""
        given = self._given(path, region)
        defaults = [f"={text(node.args[0], {})}" if not path and node.args else "" for node in region.inputs]
        return ", ".join(["self", *(name + default for name, default in zip(given, defaults, strict=True))])


_EMPTY = [f"{INDENT}super().__init__()"]
"""What a constructor does that makes nothing."""


def _repeated(made: list[str]) -> Iterator[str]:
    """Equal ones next to each other as a loop."""
    place = 0
    while place < len(made):
        count = 1
        while place + count < len(made) and made[place + count] == made[place]:
            count += 1
        yield made[place] if count == 1 else f"*({made[place]} for _ in range({count}))"
        place += count


def _empty(tensor: Tensor) -> str:
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    return f"torch.empty({', '.join(map(str, tensor.shape)) or '()'}{dtype})"


def regions_by_path(region: Region) -> dict[str, Region]:
    """Every call of a module below a region, and the region itself, by path."""
    found = {region.path: region}
    for item in region.items:
        if isinstance(item, Region):
            found |= regions_by_path(item)
    return found


def class_name(module: nn.Module) -> str:
    """The name of a module's class in the source."""
    return re.sub(r"\W", "", type(module).__name__)


def _named_tuples(node: fx.Node) -> Iterator[Any]:
    """The classes of named tuples that a node makes, or has among its arguments."""
    if is_named_tuple(node.target):
        yield node.target
    left: list[Any] = [*node.args, *node.kwargs.values()]
    while left:
        value = left.pop()
        if is_named_tuple(type(value)):
            yield type(value)
        if isinstance(value, tuple | list | dict):
            left += value.values() if isinstance(value, dict) else value


def _named_tuple(kind: Any) -> str:
    return f"class {kind.__name__}(NamedTuple):\n" + _indented(f"{name}: Any" for name in kind._fields)


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"{INDENT}{line}".rstrip() for line in lines)


def classes_of(subject: Traced) -> Classes:
    """The classes of a module with graphs down to torch's own modules."""
    whole = {mode: regions(subject.root, graph) for mode, graph in subject.graphs.items()}
    results = {mode: next(iter(graph.find_nodes(op="output"))).args[0] for mode, graph in subject.graphs.items()}
    by_path = {mode: regions_by_path(one) for mode, one in whole.items()}
    return Classes(subject, by_path, results)
