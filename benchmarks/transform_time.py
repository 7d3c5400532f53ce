"""How long a transform takes, beside `torch.export` of the same model.

Run as ``python benchmarks/transform_time.py --every 10 --out benchmarks/results`` (or ``make transform-time``). Two
things are measured, each transform with the default verification and each export as
``torch.export.export(model, inputs, strict=False)``:

ResNet-50 with its values, in one process: the first time, export before transform, and then round after round. Both
compilers keep what they have found out about functions of torch, so later rounds are faster.

Every tenth model of timm and torchvision, each once, on the meta device: no tensor holds values, so this is the
compilers' own time. A model that a compiler refuses has no time there.
"""

import argparse
import gc
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import aimgraph
from aimgraph.bench.measure import compare, ratio
from aimgraph.models_zoo.loader import load_model
from aimgraph.zoo_check.levels import without_values
from aimgraph.zoo_check.manifest import Entry, example, read_manifest
from aimgraph.zoo_check.sources import FOLDER

SOURCES = ("timm", "torchvision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=10, help="take every n-th model")
    parser.add_argument("--rounds", type=int, default=15, help="of ResNet-50")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    resnet = measure_rounds(given.rounds)
    entries = [entry for source in SOURCES for entry in read_manifest(FOLDER / f"{source}.csv") if entry.inputs]
    console = Console()
    console.print_json(json.dumps(resnet))
    measure(entries[0])  # what a process does once
    rows = [measure(entry) for entry in track(entries[:: given.every], "measuring", console=console)]
    given.out.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__.split("+")[0], "python": platform.python_version()}
    result = {
        "versions": versions,
        "threads": torch.get_num_threads(),
        "ResNet-50": resnet,
        "summary": summary(rows),
        "rows": rows,
    }
    (given.out / "transform_time.json").write_text(json.dumps(result, indent=2) + "\n")
    console.print_json(json.dumps(result["summary"]))


def measure_rounds(rounds: int) -> dict[str, Any]:
    """ResNet-50 for 8 images of 224 x 224: seconds of the first transform and export, and of later ones."""
    model, inputs = load_model("torchvision/resnet50").eval(), (torch.zeros(8, 3, 224, 224),)
    tasks = {
        "export": lambda: seconds_of(lambda: torch.export.export(model, inputs, strict=False)),
        "transform": lambda: seconds_of(lambda: aimgraph.transform(model, inputs)),
    }
    first = {name: task()["seconds"] for name, task in tasks.items()}
    times = {name: found["seconds"] for name, found in compare(tasks, rounds).items()}
    return {
        "first": {name: round(seconds, 3) for name, seconds in first.items()},
        "median": {name: round(statistics.median(seconds), 3) for name, seconds in times.items()},
        "transform / export": str(ratio(times["transform"], times["export"])),
        "rounds": rounds,
    }


def seconds_of(function: Callable[[], Any]) -> dict[str, float]:
    """The time that `function` takes, with nothing left over from before."""
    gc.collect()
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function()
    return {"seconds": time.perf_counter() - started}


def measure(entry: Entry) -> dict[str, Any]:
    """One row: layers that are called, seconds of a transform and of an export."""
    model, device = without_values(entry)
    model.eval()
    model, inputs = entry.part(model), example(entry.inputs, device)
    aim, transform = timed(lambda: aimgraph.transform(model, inputs))
    _, export = timed(lambda: torch.export.export(model, *inputs, strict=False))
    called = None if aim is None else len(aimgraph.plan(aim).called)
    gc.collect()
    return {"name": entry.name, "called": called, "transform": transform, "export": export}


def timed(function: Callable[[], Any]) -> tuple[Any, float | None]:
    """What `function` gives, and its seconds; nothing for one that is refused."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = function()
        except Exception:  # the row says that there is no time; why is the zoo check's business
            return None, None
    return result, round(time.perf_counter() - started, 3)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median seconds, and the median of the ratios over the models that both take."""
    both = [row for row in rows if row["transform"] and row["export"]]
    times = [row["transform"] for row in rows if row["transform"]]
    return {
        "models": len(rows),
        "transformed": len(times),
        "exported": sum(row["export"] is not None for row in rows),
        "transform, median s": round(statistics.median(times), 3),
        "transform, longest s": max(times),
        "transform / export, median": round(statistics.median(row["transform"] / row["export"] for row in both), 3),
    }


if __name__ == "__main__":
    main()
