"""What memories cost six networks: form beside form, interleaved, beside the floor of one plain map per site.

Run as ``python benchmarks/cost.py --out benchmarks/results`` (or ``make bench``). Every network is measured in a
process of its own; its row is written when it is done, in place of the one before, so single networks can be measured
again: ``--network ResNet-50``. Results go to ``cost_<device>.json`` and ``.png``, with ``_bfloat16``,
``_channels_last`` and ``_compiled`` in the name where that was asked for.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from aimgraph import AimConfig, presets
from aimgraph.bench import BenchReport, Cost, Setting, bench, draw_bench, print_bench
from aimgraph.models_zoo.loader import load_model

VALUES = 3136


@dataclass(frozen=True)
class Case:
    """A network with a memory.

    Attributes:
        model: Its name, as on the command line.
        inputs: Shape, batch first.
        memory: Makes the memory's config.
    """

    model: str
    inputs: tuple[int, ...]
    memory: Callable[[], AimConfig]


def every_site() -> AimConfig:
    """3,136 values that every layer reads."""
    return AimConfig(shape=(28, 28, 4))


def authors_sites() -> AimConfig:
    """The notebook's 16 sites, as readers of one memory that nothing writes."""
    sites = tuple(site for config in presets.author() for site in config.sites)
    return AimConfig(shape=presets.AUTHOR_SHAPE, sites=sites)


IMAGES = (8, 3, 224, 224)
CASES = {
    "ResNet-50": Case("zoo/resnet50_keras", IMAGES, every_site),
    "ResNet-50, the notebook's 16 sites": Case("zoo/resnet50_keras", IMAGES, authors_sites),
    "MobileNetV2": Case("torchvision/mobilenet_v2", IMAGES, every_site),
    "ConvNeXt-T": Case("torchvision/convnext_tiny", IMAGES, every_site),
    "ViT-S": Case("timm/vit_small_patch16_224", IMAGES, every_site),
    "VGG-16": Case("zoo/vgg16", IMAGES, every_site),
    "MLP": Case("zoo/mlp", (8, 784), lambda: AimConfig(shape=(VALUES,))),
    "MLP, default budget": Case("zoo/mlp", (8, 784), AimConfig),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", action="append", choices=list(CASES), help="by default all; repeatable")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", choices=["bfloat16", "float16"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", dest="compiled")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    setting = Setting(given.rounds, given.device, given.autocast, given.channels_last, given.compiled)
    place = given.out / f"{result_name(setting)}.json"
    given.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=140)
    for name in given.network or CASES:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            data = pool.apply(measure, (name, setting))
        rows = json.loads(place.read_text()) if place.exists() else {}
        rows[name] = data
        place.write_text(json.dumps({key: rows[key] for key in CASES if key in rows}, indent=1) + "\n")
        print_bench(report_of(data), console)
    draw_bench(
        {name: report_of(data) for name, data in json.loads(place.read_text()).items()}, place.with_suffix(".png")
    )


def result_name(setting: Setting) -> str:
    """Name of the result files."""
    parts = ["cost", setting.device, setting.autocast]
    parts += ["channels_last" if setting.channels_last else None, "compiled" if setting.compiled else None]
    return "_".join(filter(None, parts))


def measure(name: str, setting: Setting) -> dict[str, Any]:
    """One row."""
    torch.manual_seed(0)
    case, console = CASES[name], Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=f"{name}: {what}", completed=done, total=total)

        model, x = load_model(case.model), torch.zeros(case.inputs)
        return bench(model, x, [case.memory()], setting, progress=progress).to_dict()


def report_of(data: Mapping[str, Any]) -> BenchReport:
    """What was written down, as a report again."""
    forms = {form: Cost(**cost) for form, cost in data["forms"].items()}
    setting = Setting(**data["setting"])
    return BenchReport(data["model"], data["inputs"], data["values"], data["sites"], setting, forms)


if __name__ == "__main__":
    main()
