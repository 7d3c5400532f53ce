"""The shapes of every node, derived at two batch sizes."""

import torch
from torch import Tensor, fx

from aimgraph.compiler.node_keys import BY_BATCH, GUARDS, HAS_TENSORS, NUMBERS, OVERWRITTEN_BY, SHAPES, VALUE
from aimgraph.errors import ExampleInputError, TraceError
from aimgraph.fake.faker import Faker
from aimgraph.fake.operations import Operation
from aimgraph.fake.run import FakeRun
from aimgraph.fake.tensors import quiet
from aimgraph.inputs.arguments import Arguments, bound_arguments, hidden_tensors
from aimgraph.inputs.batch import Batches, batch_size, with_batch, with_rows
from aimgraph.runtime.guards import GuardError, guard
from aimgraph.torch_private import tree_flatten, tree_leaves, tree_unflatten
from aimgraph.tracing.trace import Traced
from aimgraph.user_code import told_error


def check_one_sample(faker: Faker, traced: Traced, inputs: Arguments) -> None:
    """Where a forward decides something by the batch size, see that one sample leads to the same.

    Raises:
        TraceError: It does not.
    """
    graph = traced.graphs.get("both") or traced.graphs["eval"]
    asked = [node for node in graph.nodes if node.target is guard]
    if not any(_depends_on_batch(node) for node in asked):
        return
    single = FakeRun(faker.root, bound_arguments(faker.root, with_batch(inputs, batch_size(inputs), 1)), faker)
    try:
        with quiet():
            single.run(graph)
    except GuardError as error:
        raise TraceError(str(error), where=_decider(graph, single)) from error
    except Exception:  # whatever the base raises on one sample, which some refuse
        return


def _decider(graph: fx.Graph, run: FakeRun) -> str:
    """Path of the module that asked what the run has refused to answer."""
    node = next(node for node in graph.nodes if node not in run.values)
    return str(node.meta.get(GUARDS, ""))


def _depends_on_batch(node: fx.Node) -> bool:
    """Whether a number that `node` is computed from changes with the batch size."""
    waiting, seen = list(node.all_input_nodes), set()
    while waiting:
        node = waiting.pop()
        if BY_BATCH in node.meta:
            return True
        if SHAPES not in node.meta and node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return False


def canonical_inputs(
    faker: Faker, traced: Traced, sample: Arguments, inputs: Arguments, batches: Batches
) -> tuple[Arguments, Batches, dict[str, FakeRun], dict[str, list[Operation]]]:
    """The inputs at a batch size that tells the batch from everything else, and the shapes they lead to.

    Beside them, the two batch sizes, and what `derive_shapes` gives.

    Which tensors carry the batch is found by trying: all whose first dimension has the size of the
    first tensor's, or, if the base does not run with these at another size, the first one alone. The
    batch size of the result is the first dimension of no tensor without a batch.

    Args:
        faker: Of the base.
        traced: Its graphs, with what they gave on `sample`.
        sample: The inputs that it was traced with.
        inputs: The example inputs.
        batches: The batch sizes to begin with.

    Raises:
        ExampleInputError: The base runs with neither at a second batch size.
    """
    size = batch_size(inputs)
    leaves, spec = tree_flatten(inputs)
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.dim()]
    alike = [i for i in tensors if leaves[i].shape[0] == size]
    refusal: ExampleInputError | None = None
    for chosen in (alike, tensors[:1]):
        others = {leaves[i].shape[0] for i in tensors if i not in chosen}
        pair = batches.apart_from(others)
        batch = pair.first
        resized = [
            with_rows(leaf, batch) if i in chosen and leaf.shape[0] != batch else leaf for i, leaf in enumerate(leaves)
        ]
        candidate: Arguments = tree_unflatten(resized, spec)
        try:
            runs = traced.runs if shapes_of(candidate) == shapes_of(sample) else {}
            return (candidate, pair, *derive_shapes(faker, traced.graphs, candidate, runs, pair))
        except ExampleInputError as error:
            refusal = refusal or error
    assert refusal is not None
    raise refusal


def shapes_of(inputs: Arguments) -> list[tuple[int, ...]]:
    """The shapes of the tensors among the inputs, in order."""
    return [tuple(leaf.shape) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]


def derive_shapes(
    faker: Faker, graphs: dict[str, fx.Graph], inputs: Arguments, first: dict[str, FakeRun], batches: Batches
) -> tuple[dict[str, FakeRun], dict[str, list[Operation]]]:
    """Note on every node its fake value, its shapes at two batch sizes, and who overwrites it.

    Args:
        faker: Of the base.
        graphs: Its graphs.
        inputs: Inputs at the first batch size.
        first: Graph -> a run on `inputs`, as far as there are any.
        batches: The two batch sizes.

    Returns:
        Graph -> the run at the first of the two batch sizes, and mode -> the operations of that at the second.

    Raises:
        ExampleInputError: The base doesn't run on `inputs`.
        TraceError: It decides otherwise at the second batch size.
    """
    root, size = faker.root, batch_size(inputs)
    kept, operations = {}, {}
    for name, graph in graphs.items():
        runs = []
        for other in (batches.first, batches.second):
            run = first.get(name) if other == batches.first else None
            run = run or FakeRun(
                root, bound_arguments(root, with_batch(inputs, size, other)), faker, train=name == "train"
            )
            try:
                with quiet():
                    run.run(graph)
            except GuardError as error:
                raise TraceError(str(error), where=_decider(graph, run)) from error
            except Exception as error:  # whatever the base's own code raises on these inputs
                shapes = [list(t.shape) for t in tree_leaves(inputs) if isinstance(t, Tensor)]
                raise ExampleInputError(
                    f"{type(root).__name__} ({name} graph) does not run on inputs of shapes {shapes} at batch size "
                    f"{other} (the first dimension is taken as the batch): {told_error(error)}"
                    f"{hidden_tensors(inputs)}. Where the model takes some batch sizes only, give two of them: "
                    "example_batches=(4, 8); a graph that was exported for one batch size has to be made for any "
                    "(torch.export: dynamic_shapes)"
                ) from error
            runs.append(run)
        _annotate(graph, *runs)
        kept[name], operations["eval" if name == "both" else name] = runs[0], runs[1].recorder.operations
    return kept, operations


def _annotate(graph: fx.Graph, first: FakeRun, second: FakeRun) -> None:
    for node in graph.nodes:
        value, other = first.values[node], second.values[node]
        node.meta.pop(OVERWRITTEN_BY, None)
        if isinstance(value, Tensor) and isinstance(other, Tensor):
            node.meta[VALUE] = value
            node.meta[SHAPES] = (tuple(value.shape), tuple(other.shape))
        elif isinstance(value, int | float | torch.Size):
            if type(value) is int and type(other) is int:
                node.meta[NUMBERS] = (value, other)
            if value != other:
                node.meta[BY_BATCH] = True
        elif any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            node.meta[HAS_TENSORS] = True
    for writer, written in first.writes:
        written.meta.setdefault(OVERWRITTEN_BY, []).append(writer)
