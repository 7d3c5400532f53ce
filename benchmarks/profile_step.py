"""Where a training step's time goes beyond the floor: operation by operation, and beside the same written by hand.

Run as ``python -m benchmarks.profile_step --out benchmarks/results``. Floor and split of the MLP of `benchmarks.cost`
run in turn under torch's profiler, which makes short operations longer; the step's own time is taken without it.
Beside them runs the same network with the same parameters, written by hand in plain torch: what split takes beyond that
is its own, and what that takes beyond the floor is the price of training so many parameters. How much of it is bytes
is told by the memory bus (8 passes over the parameters that split has more: forward, backward, gradient, and five in
the optimiser), and by the pages that a step asks of the system for gradients.
"""

import argparse
import copy
import json
import resource
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from aimgraph.bench.forms import build_forms
from aimgraph.bench.measure import compare, measured, ratio
from aimgraph.models_zoo.loader import load_model
from aimgraph.planning import plan
from benchmarks.cost import CASES

STEPS = 20
PASSES = 8
FORMS = ("floor", "split")


class ByHand(nn.Module):
    """The MLP with a memory that every linear layer reads, as one would write it in plain torch.

    Args:
        base: A model whose ``layers`` are a sequence of linear layers and activations.
        values: N.
    """

    def __init__(self, base: nn.Module, values: int) -> None:
        super().__init__()
        self.layers: nn.Sequential = copy.deepcopy(base.layers)  # type: ignore[assignment]
        self.memory = nn.Parameter(torch.randn(values) * 0.02)
        self.weights = nn.ParameterDict(
            {
                name: torch.randn(layer.out_features, values) / values**0.5
                for name, layer in self.layers.named_children()
                if isinstance(layer, nn.Linear)
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, F] -> [B, classes]."""
        for name, layer in self.layers.named_children():
            x = layer(x)
            if name in self.weights:
                x = x + F.linear(self.memory[None], self.weights[name])
        return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=["MLP", "MLP, default budget"], default="MLP")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    torch.manual_seed(0)
    case = CASES[given.network]
    x = torch.randn(case.inputs)
    base = load_model(case.model).train()
    forms = dict(build_forms(base, x, [case.memory()], FORMS))
    values = plan(base, x, config=case.memory()).memories[0].size
    forms["by hand"] = ByHand(base, values)
    steps = {name: step_of(module, x) for name, module in forms.items()}
    times = {
        name: found["seconds"]
        for name, found in compare({name: timed(step) for name, step in steps.items()}, given.rounds).items()
    }
    operations = {name: operations_of(steps[name]) for name in FORMS}
    more = sum(parameter.numel() * parameter.element_size() for parameter in forms["split"].parameters())
    more -= sum(parameter.numel() * parameter.element_size() for parameter in forms["floor"].parameters())
    result = {
        "network": given.network,
        "seconds": {name: measured(found).median for name, found in times.items()},
        "split / floor": str(ratio(times["split"], times["floor"])),
        "split / by hand": str(ratio(times["split"], times["by hand"])),
        "by hand / floor": str(ratio(times["by hand"], times["floor"])),
        "pages asked for in a step": {name: pages(step) for name, step in steps.items()},
        "seconds a page": first_touch(),
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


def pages(step: Callable[[], None]) -> float:
    """Pages of memory that the system hands out in a step, since the last step gave them back."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(STEPS):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / STEPS


def first_touch() -> float:
    """Seconds that a page takes when it is written to for the first time, beyond what it takes later."""
    size = 2**28
    large = torch.empty(size, dtype=torch.uint8)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        large[:: resource.getpagesize()].fill_(1)
        seconds.append(time.perf_counter() - started)
    return (seconds[0] - seconds[1]) / (size / resource.getpagesize())


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
