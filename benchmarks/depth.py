"""How the time of a transform grows with depth: an MLP of 2,000 layers beside one of 4,000, one after the other.

Run as ``python benchmarks/depth.py --out benchmarks/results``. A step that looks at every node for every node
would make the second take four times as long as the first; twice is what there is to do.
"""

import argparse
import gc
import json
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

import aimgraph

DEPTHS = (2000, 4000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    console = Console()
    seconds: dict[int, list[float]] = {depth: [] for depth in DEPTHS}
    measure(100)  # what a process does once
    for _ in track(range(given.rounds), "measuring", console=console):
        for depth in DEPTHS:
            seconds[depth].append(measure(depth))
    medians = {str(depth): statistics.median(found) for depth, found in seconds.items()}
    ratio = statistics.median(seconds[DEPTHS[1]]) / statistics.median(seconds[DEPTHS[0]])
    result = {
        "torch": torch.__version__.split("+")[0],
        "seconds": {str(depth): [round(s, 3) for s in found] for depth, found in seconds.items()},
        "median": {depth: round(s, 3) for depth, s in medians.items()},
        "4,000 layers / 2,000 layers": round(ratio, 3),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "depth.json").write_text(json.dumps(result, indent=2) + "\n")
    console.print_json(json.dumps(result))


def measure(depth: int) -> float:
    """Seconds of one transform, default verification on."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(8, 8), nn.ReLU())]
    model, x = nn.Sequential(*layers), torch.zeros(2, 8)
    gc.collect()
    started = time.perf_counter()
    aimgraph.transform(model, x, shape=(8,))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
