"""The README's table: the seed's networks before and after a transform.

Run as ``python benchmarks/seed_networks.py --out benchmarks/results`` (or ``make table``): for
ResNet-50, VGG-16 and the MLP it counts parameters, compares outputs with the base at zero init in
train and eval mode, exports both forms with random read weights to ONNX and compares them in
onnxruntime, and counts what a training forward saves for the backward pass, and what it keeps where all is trained,
LoRA of rank 8 on each layer, or a memory beside a frozen base. Counted, not timed.
"""

import argparse
import copy
import json
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import aimgraph
from aimgraph.bench.footprint import kept_bytes, saved_bytes
from aimgraph.bench.frozen import build_frozen
from aimgraph.models_zoo import mlp, resnet50_keras, vgg16

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-50": (resnet50_keras, (2, 3, 224, 224)),
    "VGG-16": (vgg16, (2, 3, 224, 224)),
    "MLP": (mlp, (2, 784)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out: Path = parser.parse_args().out
    console = Console()
    rows = []
    for name, (factory, shape) in NETWORKS.items():
        with console.status(f"measuring {name}"):
            rows.append({"network": name, "input": list(shape)} | measure(factory, shape))
    out.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__.split("+")[0], "python": platform.python_version()}
    (out / "seed_networks.json").write_text(json.dumps({"versions": versions, "rows": rows}, indent=2) + "\n")
    table = markdown(rows)
    (out / "seed_networks.md").write_text(table)
    console.print(table, soft_wrap=True)


def measure(factory: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, Any]:
    """One row: counts, identity, ONNX agreement of both forms, saved bytes."""
    torch.manual_seed(0)
    base, x = factory(), torch.randn(shape)
    aim = aimgraph.transform(base, x)
    plan = aimgraph.plan(aim)
    differences = {mode: difference(base, aim, x, mode == "train") for mode in ("train", "eval")}
    agreement = {}
    for lowering in ("split", "concat"):
        used = aimgraph.transform(base, x, lowering=lowering, start="drawn")
        with tempfile.TemporaryDirectory() as folder:
            report = aimgraph.export_onnx(used, Path(folder) / "model.onnx")
        agreement[lowering] = report.relative_difference
    trained, untouched = aimgraph.transform(base, x, start="drawn").train(), copy.deepcopy(base).train()
    saved, before = saved_bytes(trained, lambda: trained(x)), saved_bytes(untouched, lambda: untouched(x))
    tuned = build_frozen(base, x, [aimgraph.AimConfig()], ("full", "lora", "lean"))
    kept = {form: kept_bytes(lambda one=one: one(x), x.device) for form, one in tuned.items() if one.train()}
    return {
        "parameters_before": plan.base_parameters,
        "parameters_after": plan.base_parameters + plan.added_parameters,
        "memory": list(plan.memories[0].shape),
        "sites_read": plan.sites_read,
        "layers_present": plan.layers,
        "max_difference": differences,
        "onnx_relative_difference": agreement,
        "saved_bytes_ratio": saved / before,
        "kept_bytes": kept,
    }


def difference(base: nn.Module, aim: nn.Module, x: Tensor, train: bool) -> float:
    """Max |aim(x) - base(x)| at zero init, under the same random state."""
    outputs = []
    for module in (base, aim):
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(1)
            outputs.append(copy.deepcopy(module).train(train)(x))
    return float((outputs[0] - outputs[1]).abs().max())


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as it stands in the README."""
    lines = [
        "| network | parameters before | after | memory | sites read / present | max \\|difference\\|, train / eval "
        "| ONNX, max\\|d\\| / max\\|y\\|, split / concat | saved for backward, split / base "
        "| kept in tuning, MB: all trained / LoRA / memory |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        gap, onnx = row["max_difference"], row["onnx_relative_difference"]
        lines.append(
            f"| {row['network']} | {row['parameters_before']:,} | {row['parameters_after']:,} "
            f"| {' x '.join(map(str, row['memory']))} | {row['sites_read']} / {row['layers_present']} "
            f"| {gap['train']:g} / {gap['eval']:g} | {onnx['split']:.1e} / {onnx['concat']:.1e} "
            f"| {row['saved_bytes_ratio']:.4f} | {_megabytes(row['kept_bytes'])} |"
        )
    return "\n".join(lines) + "\n"


def _megabytes(sizes: dict[str, int]) -> str:
    return " / ".join(f"{size / 1e6:.3g}" for size in sizes.values())


if __name__ == "__main__":
    main()
