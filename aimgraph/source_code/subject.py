"""A module of any kind as graphs of torch's own modules and functions."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from aimgraph.compiler.graph_data import plain_copy
from aimgraph.copies import copy_module
from aimgraph.emit.folded_module import FoldedModule
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import replace_module, with_own_forwards
from aimgraph.emit.record import record_of
from aimgraph.emit.settled import settled
from aimgraph.errors import PlanError
from aimgraph.fake.leftovers import Outside
from aimgraph.fake.run import FakeRun
from aimgraph.fake.tensors import quiet
from aimgraph.inputs.arguments import Arguments, bound_arguments
from aimgraph.inputs.batch import batch_size, device_of, random_inputs
from aimgraph.source_code.constructors import is_list, stays_call
from aimgraph.source_code.inline import SHAPE, Traced, inline, shape_text, traced
from aimgraph.source_code.memories import Lowering, setattr_tensor
from aimgraph.torch_private import current_function_mode, function_mode_popped
from aimgraph.tracing.frontend import build_program


def subject_of(module: nn.Module, inputs: Arguments | None, *, imports: bool = False) -> Traced:
    """The graphs of a copy of a module, in which memories are parts of the modules that read them.

    Args:
        module: It is not changed.
        inputs: (args, kwargs); those of the transform by default.
        imports: Whether parts that can't be traced may stay calls.

    Raises:
        PlanError: A part has no source.
    """
    _refuse_parametrized(module)
    whole = copy_module(with_own_forwards(module)).train()
    if isinstance(whole, AimModule | FoldedModule):
        subject, parts = lowered(whole, inputs), dict[nn.Module, Traced]()
    else:
        assert inputs is not None
        subject, parts = _around_parts(whole, inputs, imports)
    inline(subject, stays_call, parts, imports=imports)
    for graph in subject.graphs.values():
        _register_constants(subject.root, graph)
    return subject


def _refuse_parametrized(module: nn.Module) -> None:
    for path, part in module.named_modules():
        if is_parametrized(part):
            names = ", ".join(part.parametrizations)
            raise PlanError(
                f"{path or 'the module'} computes its {names} by a parametrization, which has no source: make what it "
                f"computes the parameter, torch.nn.utils.parametrize.remove_parametrizations(layer, {names!r})"
            )


class _Stand(nn.Module):
    """Stands for a part whose graphs are known: what has no layer of its own is not entered."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.aim_borrowed = (part,)
        for number, parameter in enumerate(part.parameters()):
            self.register_parameter(f"parameter{number}", parameter)
        for number, buffer in enumerate(part.buffers()):
            self.register_buffer(f"buffer{number}", buffer)

    def train(self, mode: bool = True) -> Self:
        self.aim_borrowed[0].train(mode)
        return super().train(mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with ExitStack() as watched:
            while current_function_mode() is not None:  # nobody is to see layers in here
                watched.enter_context(function_mode_popped())
            return self.aim_borrowed[0](*args, **kwargs)


def _around_parts(whole: nn.Module, inputs: Arguments, imports: bool) -> tuple[Traced, dict[nn.Module, Traced]]:
    """A model in which parts may be transformed or folded, and the graphs of these."""
    known = {path: one for path, one in whole.named_modules() if isinstance(one, AimModule | FoldedModule)}
    for part in known.values():
        replace_module(whole, part, _Stand(part))
    stay = [path for path, module in whole.named_modules() if path and _is_whole(module)]
    subject, parts = traced(build_program(whole, inputs, (), share=True, stay=_outermost(stay)), imports=imports), {}
    for path, part in known.items():
        found = lowered(part, None)
        replace_module(subject.root, subject.root.get_submodule(path), found.root)
        parts[found.root] = found
    return subject, parts


def _is_whole(module: nn.Module) -> bool:
    """Whether a module is one of torch's that is made of others, such as attention."""
    return not is_list(module) and stays_call(module) and any(module.children())


def _outermost(paths: Sequence[str]) -> list[str]:
    """Those that are not below others."""
    return [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]


def lowered(part: AimModule | FoldedModule, inputs: Arguments | None) -> Traced:
    """The graphs of a transformed or folded module without ``aim``."""
    asked, graphs, root = _graphs_of(part)
    grad = isinstance(root, AimModule) and record_of(root).grad
    lowering = Lowering(root)
    with quiet(), Outside(root).kept():
        batch, runs, other, others = _runs(root, inputs or asked, graphs, grad=grad)
        for mode, graph in graphs.items():
            lowering.rewrite(graph, runs[mode].values)
        lowering.finish()
        for mode, graph in graphs.items():
            for run in (runs[mode], others[mode]):
                run.run(graph)
            _note_shapes(graph, runs[mode], others[mode], (batch, other))
    values = {mode: dict(run.values) for mode, run in runs.items()}
    return Traced(_without_graphs(root), graphs, values, batch, grad=grad)


def _note_shapes(graph: fx.Graph, run: FakeRun, other: FakeRun, batches: tuple[int, int]) -> None:
    for node in graph.nodes:
        value, also = run.values.get(node), other.values.get(node)
        if isinstance(value, Tensor) and isinstance(also, Tensor):
            node.meta[SHAPE] = shape_text(value.shape, also.shape, batches)


def _runs(
    root: nn.Module, inputs: Arguments, graphs: dict[str, fx.Graph], *, grad: bool
) -> tuple[int, dict[str, FakeRun], int, dict[str, FakeRun]]:
    """What the nodes of graphs give at two batch sizes that it runs at, and these; at one where it runs at no other."""
    done: list[tuple[int, dict[str, FakeRun]]] = []
    own = batch_size(inputs)
    for batch in dict.fromkeys((*_BATCHES, own, 2 * own)):
        sample = random_inputs(inputs, batch, seed=0, device=device_of(root), own=True)
        runs = {mode: FakeRun(root, bound_arguments(root, sample), train=mode == "train", grad=grad) for mode in graphs}
        try:
            for mode, graph in graphs.items():
                runs[mode].run(graph)
        except Exception:  # whatever the base's own code raises at a batch size that it does not take
            if batch == 2 * own and not done:
                raise
            continue
        done.append((batch, runs))
        if len(done) > 1:
            break
    return (*done[0], *done[-1])


_BATCHES = (13, 11)


def _graphs_of(part: Any) -> tuple[Arguments, dict[str, fx.Graph], nn.Module]:
    """Example inputs, graphs for both modes, and their root."""
    if isinstance(part, FoldedModule):
        _give_classes(part)
        return part._aim_inputs, {mode: plain_copy(part._graph) for mode in ("train", "eval")}, part
    root = settled(part)
    record = record_of(root)
    graphs, kind = record.graphs, "aim" if record.enabled else "base"
    chosen = {"train": "eval" if record.frozen else "train", "eval": "eval"}
    found = {mode: graphs.get(f"{kind}.{name}") or graphs[f"{kind}.both"] for mode, name in chosen.items()}
    return record.inputs, {mode: plain_copy(graph) for mode, graph in found.items()}, root


def _give_classes(folded: FoldedModule) -> None:
    """Put modules with a class, or lists of modules, where torch.fx has put bare ones."""
    torch_own = {kind.__name__: kind for kind in (nn.Sequential, nn.ModuleList, nn.ModuleDict)}
    for path, (module, name) in vars(folded).get("_aim_classes", {}).items():
        bare = folded.get_submodule(path)
        kind = torch_own.get(name) if module.startswith("torch.nn.") else None
        if type(bare) is nn.Module and type(bare) is not kind:
            bare.__class__ = kind or type(name, (nn.Module,), {"__module__": module})


def _without_graphs(root: nn.Module) -> nn.Module:
    """What a module of torch.fx holds in one of a plain class, a sequence where the base was one."""
    _, name = vars(root).get("_aim_classes", {}).get("", ("", type(root).__name__))
    sequence = isinstance(root, AimModule) and issubclass(record_of(root).base_class, nn.Sequential)
    made: nn.Module = type(name, (nn.Sequential if sequence or name == "Sequential" else nn.Module,), {})()
    for key in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        vars(made)[key] = vars(root)[key]
    held = {key: value for key, value in vars(root).items() if isinstance(value, Tensor)}
    vars(made).update(held, training=root.training)
    return made


def _register_constants(root: nn.Module, graph: fx.Graph) -> None:
    """Let tensors that are attributes of a module be buffers of it."""
    for node in graph.find_nodes(op="get_attr"):
        owner, _, name = str(node.target).rpartition(".")
        module = root.get_submodule(owner)
        if name not in module._parameters and name not in module._buffers:
            value = getattr(module, name)
            delattr(module, name)
            setattr_tensor(module, name, value)
