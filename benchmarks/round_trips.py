"""Save, load, swap, undo and export on nine networks: bit for bit in torch, within 1e-4 in onnxruntime.

Run as ``python -m benchmarks.round_trips --out benchmarks/results``. Every network gets a memory that all its layers
read, with random read weights, and statistics of its own. It is saved, loaded onto its base, swapped for another
and back, stripped, and exported with the memory as a constant and as an input; then its base gets another memory,
which its stages write, to be exported as a state. What comes back is compared with what there was.
"""

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import aimgraph
from aimgraph.errors import AimgraphError
from aimgraph.inputs.arguments import tensors_in
from aimgraph.models_zoo.loader import load_model
from aimgraph.models_zoo.pretrained import efficientnet_lite0


class Signals(nn.Module):
    """A 1-D CNN: three strided blocks and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (4, 16, 32, 64)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(one, other, 5, stride=2, padding=2), nn.BatchNorm1d(other), nn.ReLU())
                for one, other in itertools.pairwise(sizes)
            )
        )
        self.head = nn.Linear(sizes[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4, L] -> [B, 10]."""
        result: Tensor = self.head(self.blocks(x).mean(2))
        return result


def named(model: str, **options: Any) -> Callable[[], nn.Module]:
    """A model of a library."""
    return lambda: load_model(model, **options)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-50": (named("torchvision/resnet50"), (2, 3, 224, 224)),
    "VGG-16": (named("torchvision/vgg16"), (2, 3, 224, 224)),
    "EfficientNet-Lite0, pretrained": (efficientnet_lite0, (2, 3, 224, 224)),
    "ConvNeXt-T": (named("timm/convnext_tiny"), (2, 3, 224, 224)),
    "ViT-S": (named("timm/vit_small_patch16_224"), (2, 3, 224, 224)),
    "1-D CNN": (Signals, (2, 4, 256)),
    "3-D CNN": (named("torchvision/r3d_18"), (2, 3, 8, 64, 64)),
    "segmentation, FCN on ResNet-50": (named("torchvision/fcn_resnet50", weights_backbone=None), (2, 3, 96, 96)),
    "MLP": (named("zoo/mlp"), (2, 784)),
}
"""Name -> how to make it, and the shape of its input."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, action="append")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    console = Console(stderr=True)
    names = given.network or list(NETWORKS)
    result = {name: row(name) for name in track(names, "networks", console=console, disable=not console.is_terminal)}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "round_trips.json").write_text(json.dumps(result, indent=1) + "\n")
    table = Table("network", *next(iter(result.values())))
    for name, found in result.items():
        table.add_row(name, *map(str, found.values()))
    Console(width=200).print(table)


def row(name: str) -> dict[str, Any]:
    """One network: True where all is bit for bit, and max|d| / max|y| in onnxruntime."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    base, x = build(), torch.randn(shape)
    with torch.no_grad():
        base.train()(torch.randn(4, *shape[1:]))
    base.eval()
    first, second = (used(aimgraph.transform(base, x), seed) for seed in (1, 2))
    wanted, other, plain = given(first, x), given(second, x), given(base, x)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        aimgraph.save(first, place / "first")
        aimgraph.save(second, place / "second")
        aimgraph.save(first, place / "all", what="all")
        size = sum(file.stat().st_size for file in (place / "first").iterdir())
        loaded = aimgraph.load(place / "first", base).eval()
        whole = aimgraph.load(place / "all", build()).eval()
        found: dict[str, Any] = {
            "sites": len(aimgraph.plan(first).memories[0].reads),
            "checkpoint": f"{size / 1e3:,.0f} kB",
            "load": same(given(loaded, x), wanted) and same_state(loaded, first),
            "load all": same(given(whole, x), wanted) and same_state(whole, first),
        }
        aimgraph.load_memory(loaded, place / "second")
        there = same(given(loaded, x), other)
        aimgraph.load_memory(loaded, place / "first")
        found["swap and back"] = there and same(given(loaded, x), wanted)
        found["strip"] = same(given(aimgraph.strip(loaded), x), plain)
        found["onnx, constant"] = exported(first, place, "constant")
        found["onnx, input"] = exported(first, place, "input")
        options = {"updates": "stages", "carry": "state", "shape": (4, 4, 4)}
        found["onnx, state"] = exported(used(aimgraph.transform(base, x, **options), 1), place, "state")
    return found


def used(aim: nn.Module, seed: int) -> aimgraph.AimModule:
    """The same with values drawn for the memory, small enough to leave the outputs of the base's size."""
    assert isinstance(aim, aimgraph.AimModule)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in aimgraph.memory_parameters(aim):
            scale = 1.0 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale * 0.3)
    return aim.eval()


def given(module: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs."""
    with torch.no_grad():
        return tensors_in(module(x))


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Bit for bit."""
    return len(ours) == len(theirs) and all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def same_state(ours: nn.Module, theirs: nn.Module) -> bool:
    """The same for all parameters and buffers, by their names."""
    one, other = ours.state_dict(), theirs.state_dict()
    return list(one) == list(other) and same(list(one.values()), list(other.values()))


def exported(aim: nn.Module, folder: Path, memory: Any) -> str:
    """max|d| / max|y| between onnxruntime and torch; why not, where it can't be exported."""
    try:
        report = aimgraph.export_onnx(aim, folder / "model.onnx", memory=memory)
    except AimgraphError as error:
        return f"{type(error).__name__}: {error}"
    if not aimgraph.verify_onnx(folder / "model.onnx").ok:
        return "aimgraph verify fails"
    return f"{report.relative_difference:.1e}"


if __name__ == "__main__":
    main()
