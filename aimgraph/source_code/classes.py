"""The classes of a module's source: what each holds, and its forward."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from aimgraph.errors import PlanError
from aimgraph.source_code.constructors import constructor, is_kept, is_of_torch
from aimgraph.source_code.copied import NAMES
from aimgraph.source_code.expressions import text
from aimgraph.source_code.forwards import body, input_names
from aimgraph.source_code.inline import SHAPE, Traced
from aimgraph.source_code.literals import RESERVED, is_name, quoted
from aimgraph.source_code.members import layer_dtype, modes, ties, whole_dtype
from aimgraph.source_code.merged import in_one
from aimgraph.source_code.parameters import Skeletons, numbered
from aimgraph.source_code.records import records, written
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
        if path in self.subject.opaque and not is_of_torch(module):
            self._import(path, type(module))
            return constructor(module)
        if isinstance(module, nn.ParameterList | nn.ParameterDict):
            return _parameters(module)
        dtype = layer_dtype(self.root, module)
        if is_kept(module) and (path not in self._called() or not any(module.children())):
            return constructor(module) + (f".to({dtype})" if dtype else "")
        return self._class(path, module)

    def _import(self, path: str, kind: type[nn.Module]) -> None:
        """Note a class that is imported.

        Raises:
            PlanError: Other code can't import it.
        """
        if kind.__module__ == "__main__" or kind.__qualname__ != kind.__name__:
            raise PlanError(
                f"{path} can't be traced, and its class {kind.__module__}.{kind.__qualname__} can't be imported by "
                "other code: define it at the top of a module that can"
            )
        self.imported[kind.__name__] = kind.__module__

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
            last = f"class {self.name}(nn.Sequential):\n" + _indented(lines)
        else:
            self._class("", module)
        bases = {one.name: one.base for one in self.written.all}
        texts = [f"class {name}({bases[name]}):\n{code}" for name, code in self.written.texts()]
        graphs = self.subject.graphs.values()
        kinds = dict.fromkeys(kind for graph in graphs for node in graph.nodes for kind in records(node))
        return "\n\n\n".join([*map(written, kinds), *texts, *([last] if last else [])])

    @property
    def name(self) -> str:
        """The name of the module's own class."""
        own, taken = class_name(self.root), self.written.reserved - {class_name(self.root)}
        opaque = {type(self.root.get_submodule(path)).__name__ for path in self.subject.opaque}
        return next(name for name in numbered(own) if name not in taken | NAMES | RESERVED | opaque)

    def _called(self) -> set[str]:
        return {path for regions in self.forwards.values() for path in regions}

    def _is_sequence(self, path: str, module: nn.Sequential) -> bool:
        """Whether a subclass of `nn.Sequential` is one: it has nothing else, and runs as one."""
        plain = not module._parameters and not module._buffers
        return plain and all(is_chain(regions[path], module) for regions in self.forwards.values() if path in regions)

    def _listed(self, kind: str, path: str, module: nn.Module) -> str:
        names = list(module._modules)
        made = [self._member(path, module, name) for name in names]
        if kind == "nn.ModuleDict" or names != [str(number) for number in range(len(names))]:
            pairs = ", ".join(f"{quoted(name)}: {one}" for name, one in zip(names, made, strict=True))
            return f"{kind}({{{pairs}}})" if kind == "nn.ModuleDict" else f"{kind}(OrderedDict({{{pairs}}}))"
        inner = ", ".join(_repeated(made))
        return f"{kind}([{inner}])" if kind == "nn.ModuleList" else f"{kind}({inner})"

    def _member(self, path: str, module: nn.Module, name: str) -> str:
        return "None" if module._modules[name] is None else self.made(f"{path}.{name}".lstrip("."))

    def _class(self, path: str, module: nn.Module) -> str:
        """How the class of a module is called."""
        init, forward = list(self._init(path, module)), list(self._forward(path))
        lines = [*init, *forward] if init[1:] != _EMPTY or not forward else forward[1:]
        base = "nn.Sequential" if isinstance(module, nn.Sequential) else "nn.Module"
        name = class_name(module) if path else self.name
        return self.written.call(_indented([*lines, *([] if path else modes(module))]), name, base, root=not path)

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
            value = None if parameter is None else _parameter(parameter)
            own = f"self.{name} = {value}" if is_name(name) else f"self.register_parameter({quoted(name)}, {value})"
            yield INDENT + own
        for name, buffer in module._buffers.items():
            value = None if buffer is None else _empty(buffer)
            yield f"{INDENT}self.register_buffer({quoted(name)}, {value})"
        for name in members:
            if module._modules[name] is not None:
                made = self.made(f"{path}.{name}".lstrip("."))
                own = f"self.{name} = {made}" if is_name(name) else f"self.add_module({quoted(name)}, {made})"
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
        if merged := in_one(*texts.values()):
            yield from ("", *merged)
            return
        first, *others = found.values()
        signature, given = self._signature(path, first), self._passed(path, first)
        if any(self._signature(path, other) != signature for other in others):  # each mode is given what it uses
            given, signature = "*given", "self, *given"
        yield ""
        yield f"def forward({signature}):"
        yield f"{INDENT}if self.training:"
        yield f"{INDENT * 2}return self._train({given})"
        yield f"{INDENT}return self._eval({given})"
        for mode, lines in texts.items():
            yield ""
            yield lines[0].replace("def forward(", f"def _{mode}(")
            yield from lines[1:]

    def _given(self, path: str, region: Region) -> list[str]:
        return input_names(region.inputs) if path else [str(node.target) for node in region.inputs]

    def _lines(self, path: str, mode: str, region: Region) -> list[str]:
        given = self._given(path, region)
        result = None if path else self.results[mode]
        lines = body(self.root, region, given, result, lambda node: str(node.meta.get(SHAPE, "")))
        return [f"def forward({self._signature(path, region)}):", *(INDENT + line for line in lines)]

    def _signature(self, path: str, region: Region) -> str:
        """The module and its inputs, as a forward takes them."""
        names = ["self"]
        for node, name, by_name in self._taken(path, region):
            if by_name and "*" not in names:
                names.append("*")
            behind = "*" not in names and any("=" in one for one in names)  # what has a default, too
            has_default = not path and node.args and (behind or not node.users)
            names.append(f"{name}={text(node.args[0], {})}" if has_default else name)
        return ", ".join(names)

    def _passed(self, path: str, region: Region) -> str:
        """The inputs, as one forward passes them on to another of the same signature."""
        return ", ".join(f"{name}={name}" if by_name else name for _, name, by_name in self._taken(path, region))

    def _taken(self, path: str, region: Region) -> Iterator[tuple[fx.Node, str, bool]]:
        """Each input, its name, and whether it is given by name, as others before it are gone.

        Of the root, those are gone that have one value in all of this.
        """
        gap = False
        for node, name in zip(region.inputs, self._given(path, region), strict=True):
            if not path and name in self.subject.settled and not node.users:
                gap = True
            else:
                yield node, name, gap


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


def _parameter(parameter: Tensor) -> str:
    kept = parameter.is_floating_point() or parameter.is_complex()
    return f"nn.Parameter({_empty(parameter)}{'' if kept else ', requires_grad=False'})"


def _parameters(module: nn.ParameterList | nn.ParameterDict) -> str:
    """A list or dict of parameters.

    Raises:
        PlanError: It holds something else.
    """
    kind, members = type(module).__name__, module._parameters
    if len(members) != len(module):
        raise PlanError(f"a {kind} holds what is no parameter, and can't be written: {module}")
    made = {name: "None" if one is None else _parameter(one) for name, one in members.items()}
    if isinstance(module, nn.ParameterDict):
        return f"nn.ParameterDict({{{', '.join(f'{quoted(name)}: {one}' for name, one in made.items())}}})"
    return f"nn.ParameterList([{', '.join(made.values())}])"


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


def _indented(lines: Iterable[str]) -> str:
    return "\n".join(f"{INDENT}{line}".rstrip() for line in lines)


def classes_of(subject: Traced) -> Classes:
    """The classes of a module with graphs down to torch's own modules."""
    whole = {mode: regions(subject.root, graph) for mode, graph in subject.graphs.items()}
    results = {mode: next(iter(graph.find_nodes(op="output"))).args[0] for mode, graph in subject.graphs.items()}
    for mode, result in results.items():
        whole[mode].outputs = [result] if isinstance(result, fx.Node) else []
    by_path = {mode: regions_by_path(one) for mode, one in whole.items()}
    classes = Classes(subject, by_path, results)
    imported = {type(subject.root.get_submodule(path)).__name__ for path in subject.opaque}
    classes.written.reserved |= {classes.name, *imported}
    return classes
