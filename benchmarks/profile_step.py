"""Where a training step's time goes beyond the floor: operation by operation, and what the memory bus allows.

Run as ``python -m benchmarks.profile_step --network MLP --out benchmarks/results``. Floor and split of a network of
`benchmarks.cost` run in turn under torch's profiler, which makes short operations longer; the step's own time is taken
without it. Beside that: bytes of the parameters that split has and the floor has not, and how long this machine takes
to go through them as often as a training step with momentum does (8 times: forward, backward, gradient, and five times
in the optimiser).
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.profiler import ProfilerActivity, profile

from aimgraph.bench.forms import build_forms
from aimgraph.bench.measure import compare, measured, ratio
from aimgraph.models_zoo.loader import load_model
from benchmarks.cost import CASES

STEPS = 20
PASSES = 8
FORMS = ("floor", "split")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=list(CASES), default="MLP")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    torch.manual_seed(0)
    case = CASES[given.network]
    x = torch.randn(case.inputs)
    forms = build_forms(load_model(case.model).train(), x, [case.memory()], FORMS)
    steps = {name: step_of(module, x) for name, module in forms.items()}
    times = {
        name: found["seconds"]
        for name, found in compare({name: timed(step) for name, step in steps.items()}, given.rounds).items()
    }
    operations = {name: operations_of(step) for name, step in steps.items()}
    more = sum(parameter.numel() * parameter.element_size() for parameter in forms["split"].parameters())
    more -= sum(parameter.numel() * parameter.element_size() for parameter in forms["floor"].parameters())
    result = {
        "network": given.network,
        "seconds": {name: measured(found).median for name, found in times.items()},
        "split / floor": str(ratio(times["split"], times["floor"])),
        "bytes of parameters, split - floor": more,
        "seconds to go through them": more * PASSES / bandwidth(),
        "operations": table(operations),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    name = given.network.lower().replace(", ", "_").replace(" ", "_")
    (given.out / f"profile_{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    Console().print_json(json.dumps(result))


def step_of(module: nn.Module, x: Any) -> Callable[[], None]:
    """A training step."""
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        module(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return step


def timed(step: Callable[[], None]) -> Callable[[], dict[str, float]]:
    """Seconds of a step, the mean of `STEPS`."""

    def run() -> dict[str, float]:
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        return {"seconds": (time.perf_counter() - started) / STEPS}

    return run


def operations_of(step: Callable[[], None]) -> Counter[str]:
    """Operation -> microseconds of a step that it takes itself."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            step()
    return Counter({event.key: round(event.self_cpu_time_total / STEPS) for event in seen.key_averages()})


def table(operations: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """The operations that differ most, in microseconds of a step."""
    floor, split = (operations[name] for name in FORMS)
    names = sorted(set(floor) | set(split), key=lambda name: floor[name] - split[name])[:10]
    return {name: {"floor": floor[name], "split": split[name]} for name in names}


def bandwidth() -> float:
    """Bytes a second that one pass over memory gets: the best of a few sums of a large tensor."""
    large = torch.zeros(2**26)
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        large.sum()
        seconds.append(time.perf_counter() - started)
    return large.numel() * large.element_size() / min(seconds)


if __name__ == "__main__":
    main()
