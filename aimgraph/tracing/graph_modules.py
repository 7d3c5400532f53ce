"""A `torch.fx.GraphModule` as the model: the same as a module of a plain class, and back again.

What a transform makes is a `torch.fx.GraphModule` itself, which keeps one graph, under names that the base's own graph
would need, too. And torch's copies of such modules lose what no node of the graph names. So everything works on a
module around the same members whose class has the compiled graph for its forward.
"""

import copy
import copyreg
import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from types import MethodType
from typing import Any

from torch import fx, nn

from aimgraph.compiler.aim_paths import AIM
from aimgraph.compiler.graph_data import dump_graph, load_graph
from aimgraph.copies import copy_module
from aimgraph.errors import PlanError
from aimgraph.torch_private import GRAPH_NAMES, codegen_of


@dataclass(frozen=True)
class _Given:
    """What a plain module does not have of the `torch.fx.GraphModule` that it stands for.

    Attributes:
        kind: Its class, without the one that torch derives for each instance.
        name: What that one is called.
        training: The mode that it was in.
        graphs: Mode -> the graph that runs in it.
        attributes: What it has as a graph module, other graphs among it.
        methods: Functions that are bound to it on the instance (`torch.export` replaces ``train``).
    """

    kind: type[fx.GraphModule]
    name: str
    training: bool
    graphs: dict[bool, fx.Graph]
    attributes: dict[str, Any]
    methods: dict[str, Any]


class GraphClass(type):
    """Classes of plain modules that run the graph of a `torch.fx.GraphModule`; they pickle as what they are made of."""

    aim_given: _Given


def plain_module(model: Any) -> Any:
    """A module of a plain class, around the same members, that does what a `torch.fx.GraphModule` does.

    Args:
        model: Any model; one that is no such module, or has a memory already, is returned as it is.

    Raises:
        PlanError: Its graph is not the one that it runs.
    """
    if not isinstance(model, fx.GraphModule) or AIM in model._modules:
        return model
    graphs = _graphs_of(model)
    held = vars(model)
    attributes = _copied({key: one for key, one in held.items() if key in GRAPH_NAMES or isinstance(one, fx.Graph)})
    bound = {key: one for key, one in held.items() if isinstance(one, MethodType) and one.__self__ is model}
    methods = {key: one.__func__ for key, one in bound.items()}
    made = _class_of(_Given(own_class(model), type(model).__name__, model.training, graphs, attributes, methods))
    plain = made.__new__(made)
    vars(plain).update((key, one) for key, one in held.items() if key not in attributes and key not in bound)
    return plain


def given_module(plain: nn.Module) -> nn.Module:
    """The `torch.fx.GraphModule` again that `plain_module` was given, around what `plain` has now.

    Args:
        plain: Any module; one of another class is returned as it is.
    """
    plain_class: Any = type(plain)
    if not isinstance(plain_class, GraphClass):
        return plain
    given = plain_class.aim_given
    made: fx.GraphModule = given.kind.__new__(given.kind)
    type(made).__name__ = given.name
    fresh = vars(fx.GraphModule(nn.Module(), fx.Graph()))
    vars(made).update(
        {key: fresh[key] for key in GRAPH_NAMES if key in fresh} | _copied(given.attributes) | vars(plain)
    )
    vars(made).update((key, MethodType(function, made)) for key, function in given.methods.items())
    flags = {module: module.training for module in made.modules()}
    made.graph = made.graph  # compiles it
    made.training = given.training
    type(made).train(made, plain.training)  # which of its graphs runs may follow its mode
    for module, flag in flags.items():
        module.training = flag
    return made


def _copied(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a graph module with graphs of their own; two that are the same graph stay one."""
    memo: dict[int, Any] = {}
    return {
        key: copy.deepcopy(value, memo) if isinstance(value, fx.Graph) else copy.copy(value)
        for key, value in attributes.items()
    }


def own_class(module: nn.Module) -> type[Any]:
    """The class of a module, without the one that torch derives for each `torch.fx.GraphModule`."""
    return next(one for one in type(module).__mro__ if one.__qualname__.rpartition(".")[2] != "GraphModuleImpl")


def _graphs_of(model: fx.GraphModule) -> dict[bool, fx.Graph]:
    """Mode -> the graph that runs in it; both modes have the same, unless a ``train`` of its own sees to that."""
    code = model.code  # torch compiles the forward of some when that is first asked for
    if model.graph.python_code("self").src != code:
        raise PlanError(
            f"the graph of this {type(model).__name__} was changed after its forward was compiled from it: call its "
            "recompile() first"
        )
    graph = copy.deepcopy(model.graph)
    if type(model).train is nn.Module.train:
        return {True: graph, False: graph}
    twin = copy_module(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})
    graphs = {mode: copy.deepcopy(type(twin).train(twin, mode).graph) for mode in (True, False)}
    same = graphs[True].python_code("self").src == graphs[False].python_code("self").src
    return {True: graph, False: graph} if same else graphs


def _class_of(given: _Given) -> Any:
    in_train, in_eval = (_compiled(given.graphs[mode]) for mode in (True, False))

    @functools.wraps(in_eval)
    def by_mode(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (in_train if self.training else in_eval)(self, *args, **kwargs)

    forward = in_eval if given.graphs[True] is given.graphs[False] else by_mode
    members = {"forward": forward, "__call__": given.kind.__call__, "__module__": __name__, "aim_given": given}
    return GraphClass(given.name, (nn.Module,), members)


def _compiled(graph: fx.Graph) -> Callable[..., Any]:
    """The forward of a graph."""
    made: Any = fx.GraphModule(nn.Module(), fx.Graph())
    made.graph = graph
    forward: Callable[..., Any] = type(made).forward
    return forward


def _dumped(kind: GraphClass) -> tuple[Any, ...]:
    given = kind.aim_given
    held = {key: value for key, value in given.attributes.items() if isinstance(value, fx.Graph)}
    dumped: dict[int, Any] = {
        id(graph): (dump_graph(graph), codegen_of(graph)) for graph in (*given.graphs.values(), *held.values())
    }
    names = {key: id(graph) for key, graph in held.items()}
    modes = {mode: id(graph) for mode, graph in given.graphs.items()}
    return _loaded, (given.kind, given.name, given.training, given.methods, dumped, modes, names)


def _loaded(kind: Any, name: str, training: bool, methods: Any, dumped: dict[int, Any], modes: Any, names: Any) -> Any:
    graphs = {}
    for key, (data, codegen) in dumped.items():
        graphs[key] = load_graph(data)
        graphs[key].set_codegen(codegen)
    attributes = {key: graphs[one] for key, one in names.items()}
    return _class_of(
        _Given(kind, name, training, {key: graphs[one] for key, one in modes.items()}, attributes, methods)
    )


copyreg.pickle(GraphClass, _dumped)
