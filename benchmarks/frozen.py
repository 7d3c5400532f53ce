"""What it costs to train a little beside a frozen network, and all of it: memory and time of six networks.

Run as ``python -m benchmarks.frozen --out benchmarks/results`` (or ``make frozen``). Every network is measured in a
process of its own, and every peak in another; a row is written when it is done, in place of the one before, so single
networks can be measured again: ``--network ResNet-50``. Results go to ``frozen_<device>.json`` and ``.png``, with
``_compiled`` in the name where that was asked for; ``make performance`` puts them into docs/lean.md.

Each row also has the bytes that a lean forward can't do without (`needed_bytes`), counted on the base itself.
"""

import argparse
import json
import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from aimgraph.bench import FROZEN, BenchReport, Setting, bench, draw_bench, print_bench
from aimgraph.cli.asked import Asked
from aimgraph.cli.bench import with_fresh_peaks
from aimgraph.models_zoo.loader import load_model
from benchmarks.cost import report_of


@dataclass(frozen=True)
class Case:
    """A network.

    Attributes:
        model: Its name, as on the command line.
        batch: Images of 224 px.
        rounds: How many count at most.
    """

    model: str
    batch: int = 8
    rounds: int = 100


CASES = {
    "ResNet-50": Case("torchvision/resnet50"),
    "MobileNetV2": Case("torchvision/mobilenet_v2"),
    "EfficientNet-Lite0": Case("aimgraph.experiment.networks:plain_lite0"),
    "VGG-16": Case("torchvision/vgg16"),
    "ConvNeXt-T": Case("torchvision/convnext_tiny"),
    "ViT-S": Case("timm/vit_small_patch16_224"),
    "ResNet-50, batch 32": Case("torchvision/resnet50", 32, 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", choices=list(CASES), help="by default all; repeatable")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", dest="compiled")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    setting = Setting(given.rounds, given.device, compiled=given.compiled, inference=False)
    place = given.out / f"frozen_{given.device}{'_compiled' if given.compiled else ''}.json"
    given.out.mkdir(parents=True, exist_ok=True)
    for name in given.network or CASES:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            data = pool.submit(measure, name, setting).result()
        rows = json.loads(place.read_text()) if place.exists() else {}
        rows[name] = data
        place.write_text(json.dumps({key: rows[key] for key in CASES if key in rows}, indent=1) + "\n")
        print_bench(report_in(data), Console(width=140))
    rows = json.loads(place.read_text())
    draw_bench({name: report_in(data) for name, data in rows.items()}, place.with_suffix(".png"))


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """One row."""
    torch.manual_seed(0)
    case, console = CASES[name], Console(stderr=True)
    setting = replace(setting, rounds=min(setting.rounds, case.rounds))
    asked = Asked(case.model, None, (f"{case.batch}x3x224x224",), {}, False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{name}: {what}", completed=done, total=total)

        report = bench(asked.base(), asked.example_inputs(), asked.configs(), setting, forms=FROZEN, progress=progress)
        report = with_fresh_peaks(report, asked, progress)
    needed = needed_bytes(load_model(case.model), torch.zeros(case.batch, 3, 224, 224))
    return report.to_dict() | {"needed": needed}


def needed_bytes(model: nn.Module, x: Tensor) -> int:
    """What a gradient needs of the features of a frozen network, with 4 bytes a number, from the shapes alone.

        ReLU, ReLU6                    n / 8           a bit for each of n outputs
        max pooling                    n               a byte for each output
        GELU, SiLU, Hardswish          4 n             the input
        layer normalisation            4 n + 8 rows    the input, a mean and a deviation for each row
        attention (timm)               16 n + 4 h t    q, k, v and the output, and a number for each head and token
        convolution, linear layer, batch normalisation, mean pooling, sum, reshape     nothing

    Args:
        model: Of layers that are modules, each called once.
        x: Its input.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        numbers, kind = inputs[0].numel(), type(module).__name__
        if isinstance(module, nn.ReLU | nn.Hardtanh):
            total += -(-numbers // 8)
        elif isinstance(module, nn.MaxPool2d):
            total += output.numel()
        elif isinstance(module, nn.GELU | nn.SiLU | nn.Hardswish):
            total += 4 * numbers
        elif isinstance(module, nn.LayerNorm):
            total += 4 * numbers + 8 * (numbers // module.normalized_shape[-1])
        elif kind == "Attention":
            total += 16 * numbers + 4 * int(module.num_heads) * (numbers // inputs[0].shape[-1])  # type: ignore[arg-type]

    hooks = [module.register_forward_hook(count) for module in model.modules() if not isinstance(module, nn.Sequential)]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return total


def report_in(data: Mapping[str, Any]) -> BenchReport:
    """What was written down, as a report again."""
    return report_of({key: value for key, value in data.items() if key != "needed"})


if __name__ == "__main__":
    main()
