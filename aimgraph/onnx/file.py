"""What an ONNX file says about itself: batch sizes, names and metadata."""

import base64
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aimgraph.inputs.arguments import Arguments
from aimgraph.inputs.as_json import inputs_to_json
from aimgraph.inputs.batch import batch_size
from aimgraph.inputs.examples import recorded
from aimgraph.inputs.samples import Samples
from aimgraph.onnx.prepare import Prepared
from aimgraph.onnx.session import INITIAL, METADATA
from aimgraph.torch_private import tree_leaves
from aimgraph.version import __version__

BATCH_SIZES = (1, 3)
"""Batch sizes at which the file is compared where the model takes them; neither is `EXPORTED_AT`."""


EXPORTED_AT = 2
"""The batch size that the exporter sees then; of others, it sees the first."""


SAMPLED = 64
"""Values of an output that the metadata remember."""


TOLERANCES = {False: 1e-4, True: 1e-2}
"""Whether a file is in half precision -> largest max|d| / max|y| to torch that it may show by default."""


def arrays_of(values: Any, *, half: bool = False) -> list[Any]:
    """The tensors and arrays in nested `values` as arrays, floating-point ones in half precision if it is asked for."""
    leaves = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor | np.ndarray)]
    tensors = [torch.as_tensor(leaf).detach().cpu() for leaf in leaves]
    return [(tensor.half() if half and tensor.is_floating_point() else tensor).numpy() for tensor in tensors]


def told(output: Tensor) -> dict[str, Any]:
    """Some values of an output, evenly spread, its shape and its largest finite absolute value."""
    flat = output.detach().cpu().double().reshape(-1)
    step = max(1, flat.numel() // SAMPLED)
    sizes = flat[flat.isfinite()].abs()
    most = sizes.max().item() if sizes.numel() else 0.0
    return {"shape": list(output.shape), "values": flat[::step][:SAMPLED].tolist(), "max": most}


def name_ends(program: Any, prepared: Prepared, inputs: Arguments) -> None:
    """Put the exposed memories behind the other inputs, and name them and their outputs.

    A memory with a row for each sample may have one for all: it is repeated where the graph begins. Inside, its terms
    have the shapes of what they are added to, which lets what runs the graph take the sum into the layer.
    """
    graph = program.model.graph
    count = len(prepared.exposed)
    memories, own = list(graph.inputs)[:count], list(graph.inputs)[count:]
    of_base = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    size = batch_size(inputs)
    batched = next(value for value, leaf in zip(own, of_base, strict=False) if leaf.dim() and leaf.shape[0] == size)
    for index, item in enumerate(prepared.exposed):
        if item.rows == "any":
            memories[index] = _repeated(graph, memories[index], batched, item)
        else:
            memories[index].name = item.input
    graph.inputs[:] = own + memories
    written = [item.output for item in prepared.exposed if item.output]
    for value, name in zip(list(graph.outputs)[len(graph.outputs) - len(written) :], written, strict=True):
        value.name = name


def _repeated(graph: Any, value: Any, batched: Any, item: Any) -> Any:
    """An input of one row or of as many as `batched` has, in place of `value`, which has as many."""
    from onnxscript import ir  # whichever package the exporter of this torch has it from

    given = ir.Value(name=item.input, type=value.type, shape=ir.Shape([f"{item.memory}_rows", item.values]))
    value.name = f"{item.input}_by_sample"
    nodes = _row_nodes(given, batched)
    made = nodes[-1].outputs[0]
    made.name, made.type, made.shape = value.name, value.type, value.shape
    graph.inputs.remove(value)
    value.name = None
    value.replace_all_uses_with(made)
    graph.insert_before(graph[0], nodes)
    return given


_ROWS: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("batch", ("Shape", "batched"), {"start": 0, "end": 1}),
    ("count", ("Shape", "given"), {"start": 0, "end": 1}),
    ("number", ("Squeeze", "count"), {}),
    ("zero", ("Constant",), {"value": np.array(0)}),
    ("one", ("Constant",), {"value": np.array(1)}),
    ("places", ("Range", "zero", "number", "one"), {}),
    ("limits", ("ConstantOfShape", "batch"), {"value": np.array([np.iinfo(np.int64).max])}),
    ("spread", ("Mod", "places", "limits"), {}),
    ("index", ("Reshape", "spread", "batch"), {}),
    ("rows", ("Gather", "given", "index"), {}),
)
"""A row of `given` for every sample: 0 is its index where there is one row, else its own; another count of rows fails.

Name, operator with its arguments, and attributes. Shape inference of onnxruntime's tools follows this, and gives up
where an `Expand` leads from one symbol to another.
"""


def _row_nodes(given: Any, batched: Any) -> list[Any]:
    """The nodes of `_ROWS`; the last one gives the rows."""
    from onnxscript import ir  # whichever package the exporter of this torch has it from

    known, nodes = {"batched": batched, "given": given}, []
    for label, (operator, *arguments), attributes in _ROWS:
        name = f"{given.name}_{label}"
        tensors = {key: ir.tensor(one, name=name) for key, one in attributes.items() if isinstance(one, np.ndarray)}
        nodes.append(ir.node(operator, [known[argument] for argument in arguments], attributes | tensors))
        known[label] = nodes[-1].outputs[0]
        nodes[-1].name = known[label].name = name
    return nodes


def add_metadata(program: Any, prepared: Prepared, inputs: Samples, expected: list[dict[str, Any]]) -> None:
    """Say in the file what it is: plan, memories, their initial values, and what torch gives for some input."""
    batch = inputs.sizes[-1]
    drawn = {} if inputs.own else {"seed": batch}
    known = inputs.at(batch, batch) if inputs.own else recorded(inputs.inputs)
    data = {
        "format": 1,
        "aimgraph": __version__,
        "torch": str(torch.__version__),
        "memory": prepared.memory,
        "float16": prepared.float16,
        "memories": [asdict(item) for item in prepared.exposed],
        "plan": prepared.plan.to_dict() if prepared.plan is not None else None,
        "inputs": inputs_to_json(known),
        "expected": {"batch": batch, **drawn, "outputs": expected},
    }
    properties = program.model.metadata_props
    properties[METADATA] = json.dumps(data, default=str)
    for name, value in prepared.initial.items():
        raw = value.detach().cpu().float().numpy().astype("<f4").tobytes()
        properties[f"{INITIAL}{name}"] = base64.b64encode(raw).decode()
