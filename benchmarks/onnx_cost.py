"""What a folded memory costs in onnxruntime, beside graphs of the same function that were written by hand.

Run as ``python benchmarks/onnx_cost.py --out benchmarks/results``. ResNet-50 with 3,136 values that every layer reads
is folded, batch normalisation fused, and exported. By hand, each map is put into the exported base, batch normalisation
fused as well: ``broadcast`` adds [1, C, H, W] behind every convolution, ``expanded`` adds [B, C, H, W] in a graph for
that batch size alone, ``merged`` adds the maps of a block's branches behind their sum, as one. All sessions run in turn
in one process, with onnxruntime's own settings.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

import aimgraph
from aimgraph import AimConfig
from aimgraph.bench.forms import build_forms
from aimgraph.bench.measure import compare, measured, ratio
from aimgraph.distance import distance
from aimgraph.models_zoo.loader import load_model

VALUES = (28, 28, 4)
BATCHES = (1, 8)
HANDS = ("broadcast", "expanded", "merged")
TOLERANCE = 1e-4
"""Largest max|d| / max|y| between a graph and the folded one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    console = Console(stderr=True)
    result: dict[str, Any] = {"onnxruntime": onnxruntime.__version__, "rounds": given.rounds}
    with tempfile.TemporaryDirectory() as folder, Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("exporting", total=len(BATCHES) * (given.rounds + 1) * (2 + len(HANDS)))
        files = exported(Path(folder))
        for batch in BATCHES:
            bar.update(task, description=f"batch {batch}")
            result[f"batch {batch}"] = row(files, batch, given.rounds, partial(bar.advance, task))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "onnx_cost.json").write_text(json.dumps(result, indent=1) + "\n")
    Console().print_json(json.dumps(result))


def exported(folder: Path) -> dict[str, Path]:
    """Form -> ONNX file; ``{batch}`` stands in the name of one that is for a batch size."""
    torch.manual_seed(0)
    model, x = load_model("torchvision/resnet50"), torch.randn(8, 3, 224, 224)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, 3, 64, 64))  # statistics of its own for every norm
    config = AimConfig(shape=VALUES, start="drawn")
    aim = aimgraph.transform(model.eval(), x, config=config)
    base = build_forms(model, x, [config], ["fused base"])["fused base"]
    aimgraph.export_onnx(model, folder / "base.onnx", x, memory="none")
    for name, module in {"fused base": base, "folded": aimgraph.fold(aim, fuse_batchnorm=True)}.items():
        aimgraph.export_onnx(module, folder / f"{name}.onnx", x)
    maps, bias = maps_by_hand(model, aim, x[:1])
    for hand in HANDS:
        for batch in BATCHES:
            graph = onnx.load(str(folder / "fused base.onnx"))
            write_by_hand(graph, hand, batch, maps, bias)
            onnx.save(graph, str(folder / f"{hand} {batch}.onnx"))
    return {
        "base": folder / "base.onnx",
        "folded": folder / "folded.onnx",
        **{hand: folder / f"{hand} {{batch}}.onnx" for hand in HANDS},
    }


def maps_by_hand(model: nn.Module, aim: nn.Module, x: Tensor) -> tuple[dict[str, Any], Any]:
    """Convolution -> what it reads, scaled by the norm behind it; and the bias of the classifier with what it reads."""
    terms: dict[str, Tensor] = {}
    reads = aim.get_submodule("aim.memory.reads")
    for path, layer in reads.named_modules():
        if layer._parameters:
            layer.register_forward_hook(lambda _, __, term, path=path: terms.update({path: term.detach()}))
    with torch.no_grad():
        aim(x)
    classifier = terms.pop("fc").flatten() + model.get_parameter("fc.bias").detach()
    maps = {}
    for path, term in terms.items():
        norm = model.get_submodule(norm_behind(path))
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        maps[path] = (term * scale.reshape(1, -1, 1, 1)).detach().numpy()
    return maps, classifier.numpy()


def norm_behind(path: str) -> str:
    """Path of the norm behind a convolution of torchvision's ResNet."""
    if path.endswith("downsample.0"):
        return path.removesuffix("0") + "1"
    before, _, number = path.rpartition("conv")
    return f"{before}bn{number}"


def write_by_hand(model: ModelProto, hand: str, batch: int, maps: Mapping[str, Any], bias: Any) -> None:
    """Put maps into the graph of the base."""
    graph, users = model.graph, defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    nodes: list[NodeProto] = []
    behind: dict[str, Any] = {}  # a sum's output -> the maps of its branches
    for node in list(graph.node):
        nodes.append(node)
        (output,) = node.output
        made = maps[node.input[1].removesuffix(".weight")] if node.op_type == "Conv" else behind.pop(output, None)
        if made is None:
            continue
        after = users[output]
        if hand == "merged" and node.op_type == "Conv" and len(after) == 1 and after[0].op_type == "Add":
            behind[after[0].output[0]] = behind.get(after[0].output[0], 0) + made
            continue
        made = np.repeat(made, batch, 0) if hand == "expanded" else made
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(made), f"{output}_map"))
        node.output[0] = f"{output}_before"
        nodes.append(helper.make_node("Add", [f"{output}_before", f"{output}_map"], [output]))
    assert not behind
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.initializer:
        if value.name == "fc.bias":
            value.CopyFrom(numpy_helper.from_array(bias, "fc.bias"))
    if hand == "expanded":
        del graph.value_info[:]
        for item in (*graph.input, *graph.output):
            item.type.tensor_type.shape.dim[0].dim_value = batch


def row(files: Mapping[str, Path], batch: int, rounds: int, progress: Any) -> dict[str, Any]:
    """Times at one batch size."""
    x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    sessions = {}
    for name, file in files.items():
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        place = str(file).format(batch=batch)
        sessions[name] = onnxruntime.InferenceSession(place, options, providers=["CPUExecutionProvider"])
    outputs = {name: session.run(None, {session.get_inputs()[0].name: x})[0] for name, session in sessions.items()}
    for name in HANDS:
        _, apart = distance(outputs[name], outputs["folded"])
        if not apart <= TOLERANCE:
            raise RuntimeError(f"{name} does not compute what the folded graph does: max|d| / max|y| = {apart:.2g}")
    tasks = {name: partial(seconds, session, x, 8 // batch) for name, session in sessions.items()}
    times = {name: found["seconds"] for name, found in compare(tasks, rounds, progress=progress).items()}
    best = min(HANDS, key=lambda name: measured(times[name]).median)
    return {
        "seconds": {
            name: {key: round(value, 5) for key, value in vars(measured(found)).items()}
            for name, found in times.items()
        },
        "best by hand": best,
        "folded / best by hand": str(ratio(times["folded"], times[best])),
        "folded / base": str(ratio(times["folded"], times["base"])),
        "best by hand / base": str(ratio(times[best], times["base"])),
    }


def seconds(session: onnxruntime.InferenceSession, x: Any, count: int) -> dict[str, float]:
    """Seconds of a run, the mean of a few."""
    name = session.get_inputs()[0].name
    started = time.perf_counter()
    for _ in range(count):
        session.run(None, {name: x})
    return {"seconds": (time.perf_counter() - started) / count}


if __name__ == "__main__":
    main()
