"""Memories as parts of the modules that read them: a transformed module's tree and graphs without ``aim``.

A read layer becomes a member of the module whose forward calls its layer, ``conv1_read`` beside ``conv1``; the values
are a parameter of the whole. What a graph does between these is torch's own, or a function of `PLAIN`.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from aimgraph.compiler.aim_paths import AIM, below_aim, is_added, is_read_path
from aimgraph.compiler.node_keys import OWNER
from aimgraph.runtime import plain_convs
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.bias_map import BiasMap
from aimgraph.runtime.function_read import FunctionRead, group_batch
from aimgraph.runtime.layer_kinds.conv import FewPlacesConv2d
from aimgraph.runtime.memory import free_name
from aimgraph.runtime.opaque import OpaqueBase, OpaqueCall
from aimgraph.runtime.reads.view import batch_mean, expand_batch, fit, interleave
from aimgraph.runtime.sources.parameter import ParameterSource
from aimgraph.runtime.state import StateCarry
from aimgraph.runtime.updates.conv_sigmoid import SampleNorm
from aimgraph.runtime.updates.update import Update
from aimgraph.source_code import plain
from aimgraph.source_code.copied import FUNCTIONS
from aimgraph.source_code.inline import no_source
from aimgraph.source_code.owners import IN_PLACE, NAMED, SITE, VIEW, give_owners, nest, of_grid, same_shape

PLAIN: Mapping[Callable[..., Any], Callable[..., Any]] = {
    one: FUNCTIONS[one.__name__] for one in (fit, expand_batch, group_batch, interleave, batch_mean)
}
"""Functions in graphs -> those that need torch alone, which a source has copies of."""


@dataclass
class Lowering:
    """Edits the tree of a transformed or folded module, and its graphs.

    Attributes:
        root: The module, a copy.
        moved: Path below ``aim`` -> where the part stands now.
        few: Read layers that have few places to give, and do that in another way.
    """

    root: nn.Module
    moved: dict[str, str] = field(default_factory=dict)
    few: set[nn.Module] = field(default_factory=set)

    def rewrite(self, graph: fx.Graph, values: dict[fx.Node, Any]) -> None:
        """Have a graph call the parts where they stand.

        Args:
            graph: It is edited.
            values: What its nodes give; those of some that are replaced are added.

        Raises:
            PlanError: Something in it has no source.
        """
        give_owners(self.root, graph)
        for node in list(graph.nodes):
            if node.op == "call_module":
                after = node.next
                self._note_few(node, values)
                self._call(graph, node)
                values[after.prev] = values[node]
            elif node.target is accumulate:
                node.target = operator.iadd
                node.meta[IN_PLACE] = True
            elif node.target is fit and not of_grid(values[node.args[1]], node.args[3]):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
            elif node.target in PLAIN:
                node.args = _without_site(node)
                node.target = PLAIN[node.target]
            elif VIEW in node.meta and same_shape(node, values):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
        nest(graph)

    def finish(self) -> None:
        """Take away what is left below ``aim``, and let the modules of the memories be plain ones."""
        for path, home in self.moved.items():  # a layer's path may be the prefix of another's
            inside = {
                other.removeprefix(f"{path}.").partition(".")[0] for other in self.moved if other.startswith(f"{path}.")
            }
            for name in inside:
                self.root.get_submodule(home)._modules.pop(name, None)
        self.root._modules.pop(AIM, None)
        for parent in list(self.root.modules()):
            for name, child in list(parent._modules.items()):
                if isinstance(child, SampleNorm):
                    parent._modules[name] = child.norm
                elif type(child) is FewPlacesConv2d:
                    _become(child, plain_convs.FewPlacesConv2d if child in self.few else nn.Conv2d)

    def _call(self, graph: fx.Graph, node: fx.Node) -> None:
        target, owner = str(node.target), str(node.meta[OWNER])
        if not is_added(target):
            return
        module = self.root.get_submodule(target)
        if isinstance(module, OpaqueBase | OpaqueCall):
            raise no_source("the model" if isinstance(module, OpaqueBase) else module.path, module.reason)
        if isinstance(module, BiasMap):
            value = self._tensor(graph, node, f"{target}.value", f"{_within(module.sites[0], owner)}_map")
            value = _placed(graph, node, group_batch, value, node.args[0]) if module.grouped_batch else value
            _instead(graph, node, operator.iadd, node.args[0], value).meta[IN_PLACE] = True
        elif isinstance(module, FunctionRead):
            weight = self._tensor(graph, node, f"{target}.weight", self._name(target, owner))
            options = dict(node.kwargs)
            made = _instead(graph, node, getattr(F, module.function), node.args[0], weight, None)
            made.kwargs = options
        elif isinstance(module, ParameterSource) and type(module).forward is ParameterSource.forward:
            value = self._tensor(graph, node, f"{target}.value", self._name(target, owner))
            _instead(graph, node, "unsqueeze", value, 0).meta[NAMED] = "memory"
        else:
            self._part(node, module)

    def _note_few(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> None:
        module = self.root.get_submodule(str(node.target))
        if isinstance(module, FewPlacesConv2d) and module.gives_few(values[node.all_input_nodes[0]]):
            self.few.add(module)

    def _part(self, node: fx.Node, module: nn.Module) -> None:
        """Have a call be of the part where it stands."""
        target, owner = str(node.target), str(node.meta[OWNER])
        if target not in self.moved:
            home = self.root.get_submodule(owner)
            name = free_name(self._name(target, owner), lambda one: not hasattr(home, one))
            home.add_module(name, _as_plain(module))
            if is_read_path(target):
                _behind(home, name, target.partition(".reads.")[2], owner)
            self.moved[target] = f"{owner}.{name}".lstrip(".")
        node.target = self.moved[target]
        if not is_read_path(target):
            node.meta[NAMED] = "view" if ".views." in target else "memory"
        if isinstance(module, StateCarry):
            node.args = node.args[:2]

    def _tensor(self, graph: fx.Graph, node: fx.Node, path: str, name: str) -> fx.Node:
        """A parameter or buffer as a member of the module whose forward uses it."""
        owner = str(node.meta[OWNER])
        if path not in self.moved:
            home = self.root.get_submodule(owner)
            name = free_name(name, lambda one: not hasattr(home, one))
            setattr_tensor(home, name, operator.attrgetter(path)(self.root))
            self.moved[path] = f"{owner}.{name}".lstrip(".")
        with graph.inserting_before(node):
            made = graph.create_node("get_attr", self.moved[path])
        made.meta[OWNER] = owner
        return made

    def _name(self, target: str, owner: str) -> str:
        """``memory``, ``conv1_read``, ``memory_update``; with several memories, reads are named after theirs."""
        memory, _, part = below_aim(target).partition(".")
        if part.startswith("reads."):
            several = len(self.root.get_submodule(AIM)._modules) > 1
            return f"{_within(part.removeprefix('reads.'), owner)}_read" + (f"_{memory}" if several else "")
        kind = re.sub(r"s?(\.\d+)?$", "", part.partition(".")[0]) if not part.startswith("source") else "source"
        module = self.root.get_submodule(target)
        return memory if isinstance(module, ParameterSource) else f"{memory}_{kind}"


def _behind(home: nn.Module, name: str, site: str, owner: str) -> None:
    """Let a read layer stand behind the layer that it is for."""
    names = list(home._modules)[:-1]
    before = site.removeprefix(f"{owner}." if owner else "").partition(".")[0]
    if before in names:
        for later in names[names.index(before) + 1 :]:
            if "_read" not in later or not later.startswith(_within(before, "")):
                home._modules[later] = home._modules.pop(later)


def setattr_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Let a module hold a parameter or buffer."""
    if isinstance(value, nn.Parameter):
        module.register_parameter(name, value)
    else:
        module.register_buffer(name, value)


def _within(path: str, owner: str) -> str:
    """``layer1.0.conv1`` inside ``layer1.0`` -> ``conv1``."""
    name = re.sub(r"\W", "_", path.removeprefix(f"{owner}." if owner else ""))
    return f"layer{name}" if name[0].isdigit() else name


def _placed(graph: fx.Graph, node: fx.Node, target: Callable[..., Any] | str, *args: Any) -> fx.Node:
    with graph.inserting_before(node):
        made = graph.create_node("call_method" if isinstance(target, str) else "call_function", target, args)
    made.meta[OWNER] = node.meta[OWNER]
    return made


def _instead(graph: fx.Graph, node: fx.Node, target: Callable[..., Any] | str, *args: Any) -> fx.Node:
    """A call in the place of a node."""
    made = _placed(graph, node, target, *args)
    node.replace_all_uses_with(made)
    graph.erase_node(node)
    return made


def _without_site(node: fx.Node) -> tuple[Any, ...]:
    """The arguments of a call, without the name of a layer and what is so by default."""
    args = list(node.args)
    if node.target is fit:
        args = args[:SITE]
    defaults = (1, 0) if node.target is fit else (0,) if node.target is expand_batch else ()
    for default in reversed(defaults):
        if len(args) == 2 or args[-1] != default or args[-1] is None:
            break
        del args[-1]
    return tuple(args)


def _as_plain(module: nn.Module) -> nn.Module:
    """A part of a memory without what guards it."""
    if isinstance(module, StateCarry):
        made = plain.Carry(module.state.numel(), module.rate, module.write_in_eval).train(module.training)
        made.state = module.state
        return made
    if isinstance(module, Update):
        kind = type(module)
        _become(module, type(kind.__name__, (kind,), {"forward": _update, "__module__": kind.__module__}))
        del module._buffers["skipped"]
    return module


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind


def _update(self: Update, memory: Tensor, features: Tensor) -> Tensor:
    """The forward of an update, which does not look for what is not finite."""
    axes = (self.batch_axis, self.channel_axis)
    x = features if axes == (0, 1) else features.movedim(axes, (0, 1))
    new, gate = self.heads(memory, x)
    if gate is not None:
        new = memory + torch.sigmoid(gate) * (new - memory)
    return new.mean(0, keepdim=True) if self.pool == "batch" else new
