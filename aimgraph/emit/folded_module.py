"""The module that `aimgraph.fold` gives: a plain graph, and what was folded."""

import copy
from dataclasses import dataclass
from typing import Any, Never, Self

from torch import fx, nn

from aimgraph.compiler.aim_paths import AIM
from aimgraph.compiler.graph_data import NodeData, dump_graph, load_graph
from aimgraph.copies import copy_results
from aimgraph.emit.forwards import contexts_closed, retraceable
from aimgraph.emit.record import record_of
from aimgraph.emit.retrace import AROUND, has_hooks, refuse_lost_hooks, refuse_script
from aimgraph.inputs.arguments import Arguments
from aimgraph.runtime.regions import enter_context
from aimgraph.torch_private import COMPILED, keywords_quoted


@dataclass(frozen=True)
class Folds:
    """What became of the reads.

    Attributes:
        biases: Layers whose bias holds what they read.
        maps: Layers that have a map added to their output.
        left: Layers that read as before -> why.
    """

    biases: tuple[str, ...]
    maps: tuple[str, ...]
    left: dict[str, str]


class FoldedModule(fx.GraphModule):
    """What `fold` gives: for inference only, it stays in eval mode.

    Args:
        root: Owner of the modules.
        graph: What runs.
        name: Class name of the base.
        folds: What became of the reads.
        inputs: (args, kwargs) of the size that it was folded for.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, name: str, folds: Folds, inputs: Arguments) -> None:
        super().__init__(root, graph, class_name=name)
        self.folds = folds
        self._aim_inputs = inputs
        self._aim_classes = _classes_lost(root, self)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Nothing: what was folded holds for the statistics and weights of that moment."""
        return super().train(False)

    @property
    def graph(self) -> fx.Graph:
        """What runs."""
        refuse_lost_hooks(self)
        return self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        fx.GraphModule.graph.fset(self, graph)  # type: ignore[attr-defined]

    def recompile(self) -> Any:
        """Make the forward from the graph."""
        with keywords_quoted():
            code = super().recompile()
        kind: Any = type(self)
        if any(node.target is enter_context for node in self._graph.nodes):
            kind.forward = contexts_closed(kind.forward)
        kind.forward = retraceable(kind.forward)
        return code

    def __prepare_scriptable__(self) -> Never:
        refuse_script(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FoldedModule":
        copy_results(self, memo)
        return _loaded(copy.deepcopy(self._state(), memo), dump_graph(self._graph), type(self).__name__)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _loaded, (self._state(), dump_graph(self._graph), type(self).__name__)

    def _state(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_graph", *COMPILED)}


def _classes_lost(root: nn.Module, made: nn.Module) -> dict[str, tuple[str, str]]:
    """Path -> module and name of the class, where torch.fx has put a bare module in the place of one with a class."""
    bare = [path for path, part in made.named_modules(remove_duplicate=False) if path and type(part) is nn.Module]
    kinds = {path: type(part) for path, part in root.named_modules(remove_duplicate=False)}
    return {path: (kinds[path].__module__, kinds[path].__name__) for path in bare if path in kinds}


def keep_hooks(folded: FoldedModule, aim: nn.Module) -> FoldedModule:
    """Let the hooks around what was folded run around the folded module, too.

    A hook may read any member of the module that it is given, so that all of the base's are kept with it.

    Args:
        folded: The folded module; it is changed.
        aim: What its graph and modules were taken from.
    """
    if not has_hooks(aim):
        return folded
    there, own = vars(folded), vars(aim)
    for name in record_of(aim).base_attributes:
        if name in own:
            there.setdefault(name, own[name])
    there["_modules"].update((name, part) for name, part in own["_modules"].items() if name != AIM)
    for members in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
        there[members].update(own[members])
    there.update((key, copy.copy(value)) for key, value in own.items() if key.startswith(AROUND))
    folded.eval()
    return folded


def _loaded(state: dict[str, Any], nodes: list[NodeData], name: str) -> FoldedModule:
    made = FoldedModule(nn.Module(), fx.Graph(), name, state["folds"], state["_aim_inputs"])
    vars(made).update(state)
    made.graph = load_graph(nodes)
    return made
