"""One onnxruntime session that serves many memories, beside graphs of the same function that were written by hand.

Run as ``python -m benchmarks.serve --out benchmarks/results``. A network gets a memory that every layer reads; its
values are an input of the file (``memory="input"``). By hand, the memory is put into the base's file as exported,
batch normalisation fused: ``beside`` lays the values out once per grid and adds a convolution of them behind every
convolution; ``merged`` adds those of a block's branches behind their sum, as one. With ``rows`` the values are declared
to have the batch that the images have, which lets onnxruntime take sums into convolutions; they have a number of rows
of their own otherwise. All sessions run in turn in one process, request by request and with a memory for each sample of
a batch, with onnxruntime's own settings.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import NodeProto, helper, numpy_helper
from rich.console import Console
from rich.progress import Progress
from torch import nn

import aimgraph
from aimgraph.api.fold import exposed
from aimgraph.bench.measure import compare, measured, ratio
from aimgraph.distance import distance
from aimgraph.emit.record import record_of
from aimgraph.models_zoo.loader import load_model
from aimgraph.models_zoo.pretrained import efficientnet_lite0
from aimgraph.runtime.reads.view import ViewSpec

NETWORKS = {"ResNet-50": "torchvision/resnet50", "EfficientNet-Lite0": ""}
BATCHES = (1, 8)
HANDS = ("beside", "merged", "rows beside", "rows merged")
MEMORIES = 100
TOLERANCE = 1e-4
"""Largest max|d| / max|y| between a graph and the exported one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    names = given.network or list(NETWORKS)
    console = Console(stderr=True)
    result: dict[str, Any] = {"onnxruntime": onnxruntime.__version__, "rounds": given.rounds, "memories": MEMORIES}
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("exporting", total=len(names) * len(BATCHES) * (given.rounds + 1) * (2 + len(HANDS)))
        for name in names:
            files = exported(name, Path(folder))
            result[name] = {}
            for batch in BATCHES:
                bar.update(task, description=f"{name}, batch {batch}")
                result[name][f"batch {batch}"] = row(files, batch, given.rounds, partial(bar.advance, task))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "serve.json").write_text(json.dumps(result, indent=1) + "\n")
    Console().print_json(json.dumps(result))


def network(name: str) -> nn.Module:
    """A network in eval mode, with statistics of its own for every norm."""
    if not NETWORKS[name]:
        return efficientnet_lite0().eval()
    model = load_model(NETWORKS[name])
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, 3, 64, 64))
    return model.eval()


def exported(name: str, folder: Path) -> dict[str, Path]:
    """Form -> ONNX file."""
    torch.manual_seed(0)
    model, x = network(name), torch.randn(2, 3, 224, 224)
    aim = aimgraph.transform(model, x, start="drawn").eval()
    files = {form: folder / f"{name} {form}.onnx" for form in ("exported", "base", *HANDS)}
    aimgraph.export_onnx(aim, files["exported"], memory="input")
    aimgraph.export_onnx(model, files["base"], x, memory="none")
    reads = scaled_reads(aim)
    for hand in HANDS:
        graph = onnx.load(str(files["base"]))
        write_by_hand(graph, hand, aim, reads)
        graph = onnx.shape_inference.infer_shapes(graph)
        onnx.checker.check_model(graph)
        onnx.save(graph, str(files[hand]))
    return files


def scaled_reads(aim: aimgraph.AimModule) -> dict[str, Any]:
    """Layer -> its read weight, scaled by the norm behind it."""
    folded, _ = exposed(aim, record_of(aim).inputs, "input", keep=("memory",), sizes=False)
    prefix = "aim.memory.reads."
    return {
        key.removeprefix(prefix).removesuffix(".weight"): value.numpy()
        for key, value in folded.state_dict().items()
        if key.startswith(prefix)
    }


def write_by_hand(model: Any, hand: str, aim: aimgraph.AimModule, reads: dict[str, Any]) -> None:
    """Let every convolution and the classifier of the base's graph read the memory."""
    graph, users = model.graph, defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    (memory,) = aimgraph.plan(aim).memories
    specs = {read.site: read.calls[0].spec for read in memory.reads}
    layers = [read.site for read in memory.reads]
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(convolutions) == len(layers)  # both in the order in which they run
    graph.input.append(
        helper.make_tensor_value_info(
            "memory", onnx.TensorProto.FLOAT, ["batch" if "rows" in hand else "memories", memory.size]
        )
    )
    views: dict[ViewSpec, str] = {}
    nodes: list[NodeProto] = []
    behind: dict[str, list[str]] = {}  # a sum's output -> the terms of its branches
    site = iter(layers)
    for node in list(graph.node):
        nodes.append(node)
        (output,) = node.output
        terms = behind.pop(output, [])
        if node.op_type in ("Conv", "Gemm"):
            path = next(site)
            term = _term(graph, nodes, node, path, specs[path], reads[path], views)
            after = users[output]
            if "merged" in hand and len(after) == 1 and after[0].op_type == "Add" and node.op_type == "Conv":
                behind.setdefault(after[0].output[0], []).append(term)
                continue
            terms = [term]
        if not terms:
            continue
        if len(terms) > 1:
            nodes.append(helper.make_node("Add", terms, [f"{output}_terms"]))
            terms = [f"{output}_terms"]
        node.output[0] = f"{output}_before"
        nodes.append(helper.make_node("Add", [f"{output}_before", terms[0]], [output]))
    assert not behind
    del graph.node[:]
    graph.node.extend(_sorted(nodes))


def _term(
    graph: Any,
    nodes: list[NodeProto],
    node: NodeProto,
    path: str,
    spec: ViewSpec,
    weight: Any,
    views: dict[ViewSpec, str],
) -> str:
    """What a layer reads; its view is laid out where it is first needed."""
    if spec not in views:
        views[spec] = _view(graph, nodes, spec, len(views))
    name = f"{path}.read"
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weight), name))
    if node.op_type == "Gemm":
        nodes.append(helper.make_node("Gemm", [views[spec], name], [f"{name}_term"], transB=1))
        return f"{name}_term"
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    attributes["group"] = 1
    nodes.append(helper.make_node("Conv", [views[spec], name], [f"{name}_term"], **attributes))
    return f"{name}_term"


def _view(graph: Any, nodes: list[NodeProto], spec: ViewSpec, number: int) -> str:
    """The values on a grid, [B, k, *S]."""
    name, shown = f"view_{number}", "memory"

    def constant(label: str, values: list[int]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), f"{name}_{label}"))
        return f"{name}_{label}"

    def add(kind: str, inputs: list[str], label: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{name}_{label}"], **attributes))
        return f"{name}_{label}"

    if not spec.grid:
        return shown
    if spec.style == "centred":
        side = int(np.ceil(np.sqrt(spec.size)))
        top, left = (spec.grid[0] - side) // 2, (spec.grid[1] - side) // 2
        if side * side > spec.size:
            shown = add("Pad", [shown, constant("end", [0, 0, 0, side * side - spec.size])], "filled")
        shown = add("Reshape", [shown, constant("square", [0, 1, side, side])], "shaped")
        ends = [0, 0, top, left, 0, 0, spec.grid[0] - side - top, spec.grid[1] - side - left]
        return add("Pad", [shown, constant("around", ends)], "shown") if any(ends) else shown
    missing = spec.channels * int(np.prod(spec.grid)) - spec.size
    if missing:
        shown = add("Pad", [shown, constant("end", [0, 0, 0, missing])], "filled")
    shown = add("Reshape", [shown, constant("shape", [0, *spec.grid, spec.channels])], "shaped")
    return add("Transpose", [shown], "shown", perm=[0, 3, 1, 2])


def _sorted(nodes: list[NodeProto]) -> list[NodeProto]:
    """Every node behind those whose outputs it takes."""
    made = {name: node for node in nodes for name in node.output}
    done: dict[str, None] = {}
    result: list[NodeProto] = []

    def visit(node: NodeProto) -> None:
        if node.output[0] in done:
            return
        done[node.output[0]] = None
        for name in node.input:
            if name in made:
                visit(made[name])
        result.append(node)

    for node in nodes:
        visit(node)
    return result


def row(files: dict[str, Path], batch: int, rounds: int, progress: Any) -> dict[str, Any]:
    """Times at one batch size."""
    random = np.random.default_rng(0)
    sessions, feeds = {}, {}
    for name, file in files.items():
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        sessions[name] = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    image = next(item for item in sessions["base"].get_inputs())
    size = next(item.shape[1] for item in sessions["exported"].get_inputs() if item.name == "memory")
    memories = random.standard_normal((MEMORIES, size), dtype=np.float32)
    requests = [random.integers(0, MEMORIES, batch) for _ in range(8 // batch)]
    x = random.standard_normal((batch, 3, 224, 224), dtype=np.float32)
    for name in files:
        own = [{image.name: x} | ({} if name == "base" else {"memory": memories[rows]}) for rows in requests]
        feeds[name] = own
    outputs = {name: [sessions[name].run(None, feed)[0] for feed in feeds[name]] for name in files}
    for name in HANDS:
        for ours, theirs in zip(outputs["exported"], outputs[name], strict=True):
            _, apart = distance(theirs, ours)
            if not apart <= TOLERANCE:
                raise RuntimeError(
                    f"{name} does not compute what the exported graph does: max|d| / max|y| = {apart:.2g}"
                )
    tasks = {name: partial(seconds, sessions[name], feeds[name]) for name in files}
    times = {name: found["seconds"] for name, found in compare(tasks, rounds, progress=progress).items()}
    best = min(HANDS, key=lambda name: measured(times[name]).median)
    return {
        "seconds for 8 images": {
            name: {key: round(value, 5) for key, value in vars(measured(found)).items()}
            for name, found in times.items()
        },
        "best by hand": best,
        "throughput, exported / best by hand": str(ratio(times[best], times["exported"])),
        "throughput, exported / base": str(ratio(times["base"], times["exported"])),
        "throughput, best by hand / base": str(ratio(times["base"], times[best])),
    }


def seconds(session: onnxruntime.InferenceSession, feeds: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds for all requests."""
    started = time.perf_counter()
    for feed in feeds:
        session.run(None, feed)
    return {"seconds": time.perf_counter() - started}


if __name__ == "__main__":
    main()
