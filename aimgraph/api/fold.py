"""fold: a module for inference, in which a memory that never changes costs an addition, or nothing."""

from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from aimgraph.compiler.graph_data import plain_copy
from aimgraph.compiler.pipeline import Pipeline
from aimgraph.compiler.program import Pass, Program, Stage
from aimgraph.compiler.signature import Signature, base_names, graph_inputs
from aimgraph.copies import copy_module
from aimgraph.emit.changed import refuse_changed
from aimgraph.emit.concat import refuse_concat
from aimgraph.emit.folded_module import FoldedModule, Folds, keep_hooks
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import parts_of, refuse_offloaded, replace_part, tensors_named, with_own_forwards
from aimgraph.emit.record import record_of
from aimgraph.emit.settled import settled
from aimgraph.errors import AimgraphError, ConfigError, ExampleInputError
from aimgraph.fake.leftovers import Outside
from aimgraph.fake.run import FakeRun
from aimgraph.fake.tensors import quiet
from aimgraph.inputs.arguments import Arguments, bound_arguments
from aimgraph.inputs.batch import batch_size, device_of, input_shapes, random_inputs
from aimgraph.inputs.examples import recorded, resolve_inputs
from aimgraph.passes import FOLDING
from aimgraph.passes.expose_state import Exposed, ExposeState, Kind, exposed_in
from aimgraph.passes.fold_batchnorm import FoldBatchnorm
from aimgraph.passes.fold_memory import FoldMemory
from aimgraph.runtime.bias_map import BiasMap
from aimgraph.runtime.given import given_module
from aimgraph.runtime.guards import GuardError
from aimgraph.user_code import told_error, told_pre_hooks


def fold(aim: nn.Module, example_inputs: Any = None, *, fuse_batchnorm: bool = False) -> nn.Module:
    """A module for inference in which memories that never change are bias maps: no memory arithmetic is left.

    What a layer reads of such a memory is computed once. Where it is the same at every place, as it is for a linear
    layer on [B, F], it becomes part of the layer's bias, and costs nothing; everywhere else it is one addition.
    Memories with updates keep what comes after the first of them.

    Args:
        aim: A transformed module in split form, or a larger model with transformed parts; it is not changed.
        example_inputs: Inputs of the size to fold for, as for `aimgraph.transform`; by default those of the transform.
            Maps hold for that size; an input of another size is refused, unless no map depends on it.
        fuse_batchnorm: Also take every batch normalisation into the layer before it, where there is one that nothing
            else uses: conv, map and norm become conv and map.

    Returns:
        A module that shares nothing with `aim`, stays in eval mode, and can be copied, pickled and compiled; its
        ``folds`` says what became of every read. Hooks around the forward of `aim` run around it, too.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: Its read weights are part of the base's own weights (concat form), its memory is disabled,
            or a weight is offloaded to the meta device.
        ExampleInputError: It does not run on the example inputs.
    """
    given_module(aim, "fold")
    refuse_offloaded(tensors_named(aim), "fold")
    aim = with_own_forwards(aim)
    if isinstance(aim, AimModule):
        return _folded(aim, example_inputs, fuse_batchnorm)
    parts = parts_of(aim)
    if example_inputs is not None and len(parts) > 1:
        raise ConfigError(f"example_inputs can't fit {len(parts)} transformed parts: fold them one by one")
    whole = copy_module(aim)
    for part in parts_of(whole):
        replace_part(whole, part, _folded(part, example_inputs, fuse_batchnorm))
    return whole


def exposed(
    aim: AimModule, inputs: Arguments, kind: Kind | None, *, keep: tuple[str, ...], sizes: bool
) -> tuple[FoldedModule, tuple[Exposed, ...]]:
    """A folded module whose memories of a kind are arguments, before those of the base, and results.

    Args:
        aim: A transformed module in split form.
        inputs: (args, kwargs), of the size to fold for.
        kind: ``input`` or ``state``; None for neither.
        keep: Memories that are not folded.
        sizes: Whether it is to take other sizes, too.

    Batch normalisation is part of the layers before it then: what runs the graph does that where nothing is added
    between the two, and can't where a memory is. Hooks around its forward run where no memory is an argument.

    Raises:
        ConfigError: It is in concat form, disabled, or every sample has a memory set of its own.
    """
    root, program = _folded_program(aim, inputs, folding(True, keep, ExposeState(kind, sizes)))
    (graph,) = program.graphs.values()
    made, items = FoldedModule(root, plain_copy(graph), "Exposed", _folds(program), inputs), exposed_in(graph)
    return made if items else keep_hooks(made, root), items


def folding(fuse_batchnorm: bool, keep: tuple[str, ...] = (), *more: Pass) -> tuple[Pass, ...]:
    """The passes of `fold`.

    Args:
        fuse_batchnorm: Whether norms become part of layers.
        keep: Memories to leave as they are.
        *more: What comes after them.
    """
    chosen = (step for step in FOLDING if fuse_batchnorm or not isinstance(step, FoldBatchnorm))
    return (*(replace(step, keep=keep) if isinstance(step, FoldMemory) else step for step in chosen), *more)


def _folded(aim: AimModule, example_inputs: Any, fuse_batchnorm: bool) -> FoldedModule:
    record = record_of(aim)
    inputs = record.inputs if example_inputs is None else resolve_inputs(aim, example_inputs)
    root, program = _folded_program(aim, inputs, folding(fuse_batchnorm))
    graph = plain_copy(next(iter(program.graphs.values())))
    made = FoldedModule(root, graph, record.base_class.__name__, _folds(program), recorded(inputs))
    return _with_same_arguments(keep_hooks(made, root), inputs)


def _with_same_arguments(folded: FoldedModule, inputs: Arguments) -> FoldedModule:
    """A folded module whose hooks give its forward what its graph is for.

    Raises:
        ExampleInputError: They give it other arguments.
    """
    if hooks := told_pre_hooks(folded):
        args, kwargs = random_inputs(inputs, batch_size(inputs), seed=0, device=device_of(folded), own=True)
        try:
            with torch.no_grad():
                copy_module(folded)(*args, **kwargs)
        except GuardError as error:
            raise ExampleInputError(
                f"hooks around the forward ({hooks}) give it other arguments than the example inputs: {error}"
            ) from error
    return folded


def _folded_program(aim: AimModule, inputs: Arguments, passes: tuple[Pass, ...]) -> tuple[AimModule, Program]:
    record = record_of(aim)
    refuse_concat(aim, "fold can't tell what layers read from what they compute")
    if not record.enabled:
        raise ConfigError("the memory is disabled: call aimgraph.enable_memory first, or aimgraph.strip for the base")
    refuse_changed(aim)
    root = settled(aim).eval()
    return root, Pipeline(passes).run(program_of(root, inputs)).program


def _folds(program: Program) -> Folds:
    left = {item.path: item.reason for entry in program.history for item in entry.skipped if item.kind == "read"}
    maps = {site for module in program.root.modules() if isinstance(module, BiasMap) for site in module.sites}
    reads = dict.fromkeys(read.name for memory in program.plan.memories for read in memory.reads)
    folded = [name for name in reads if name not in left]
    biases = tuple(name for name in folded if name not in maps)
    return Folds(biases, tuple(name for name in folded if name in maps), left)


def program_of(root: AimModule, inputs: Arguments) -> Program:
    """The graph of the module's present mode as a program again, on its way to be edited.

    Args:
        root: Owner of the modules; passes edit it.
        inputs: (args, kwargs), for the sizes.

    Raises:
        ExampleInputError: It does not run on such inputs.
    """
    record = record_of(root)
    mode = "train" if root.training else "eval"
    graph = plain_copy(root._graph)
    batch, sample, run = _first_run(root, graph, inputs)
    signature = Signature(
        model=record.base_class.__name__,
        placeholders={mode: graph_inputs(graph)},
        parameters=base_names(root),
        inputs=tuple(tuple(shape) for shape in input_shapes(inputs)),
        batch=batch,
        moded=(),
        example=sample,
        grad=record.grad,
    )
    return Program(root, {mode: graph}, {}, {mode: run}, signature, (), record.plan, Stage.LOWERED)


def _first_run(root: AimModule, graph: fx.Graph, inputs: Arguments) -> tuple[int, Arguments, FakeRun]:
    """The least batch size at which a graph runs, such inputs, and what it gives on fake ones.

    Tried are one sample, and as many as the example has: edges number the nodes of a graph.
    """
    record, device = record_of(root), device_of(root)
    refused: list[tuple[ExampleInputError, Exception]] = []
    for batch in dict.fromkeys((1, *(record.batches or ()), batch_size(inputs))):
        sample = random_inputs(inputs, batch, seed=0, device=device, own=True)
        run = FakeRun(root, bound_arguments(root, sample), train=root.training, grad=record.grad)
        with quiet(), Outside(root).kept():
            try:
                run.run(graph)
            except AimgraphError:
                raise
            except Exception as error:  # whatever the base's own code raises on these inputs
                refused.append((_refusal(run, graph, inputs, error), error))
                continue
        return batch, sample, run
    first, cause = refused[0]
    raise first from cause


def _refusal(run: FakeRun, graph: fx.Graph, inputs: Arguments, error: Exception) -> ExampleInputError:
    node = next(node for node in graph.nodes if node not in run.values)
    at = f" at {node.target}" if node.op == "call_module" else ""
    return ExampleInputError(
        f"{record_of(run.root).base_class.__name__} does not run on one sample of inputs of shapes "
        f"{input_shapes(inputs)}, nor on as many as the example has: {told_error(error)}{at}; give example_inputs of a "
        "size that it takes"
    )
