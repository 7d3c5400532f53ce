"""How long a transform takes, model after model in one process, beside `torch.export` of the same model.

Run as ``python benchmarks/transform_time.py --every 10 --out benchmarks/results`` (or ``make transform-time``): every
tenth model of timm and torchvision is built on the meta device, transformed once with the default verification,
and exported once with ``torch.export.export(model, inputs, strict=False)``. No tensor holds values, so this is
the compilers' own time. A model that a compiler refuses has no time there.
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
from aimgraph.zoo.levels import without_values
from aimgraph.zoo.manifest import Entry, example, read_manifest
from aimgraph.zoo.sources import FOLDER

SOURCES = ("timm", "torchvision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=10, help="take every n-th model")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    entries = [entry for source in SOURCES for entry in read_manifest(FOLDER / f"{source}.csv") if entry.inputs]
    console = Console()
    measure(entries[0])  # what a process does once
    rows = [measure(entry) for entry in track(entries[:: given.every], "measuring", console=console)]
    given.out.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__.split("+")[0], "python": platform.python_version()}
    result = {"versions": versions, "threads": torch.get_num_threads(), "summary": summary(rows), "rows": rows}
    (given.out / "transform_time.json").write_text(json.dumps(result, indent=2) + "\n")
    console.print_json(json.dumps(result["summary"]))


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
