"""What can N values learn? A memory whose read weights are drawn and fixed, beside other ways to tune a frozen network.

Run as ``python -m benchmarks.values --out benchmarks/results``. Two tasks on frozen networks, six sizes of memory.
Every way to tune takes its learning rate from one grid: the one that is best on half of the held-out images, with a
seed that does not count. What counts is the accuracy on the other half, for the seeds after it. Runs are written to
``values_<task>.json`` as they are done, and a run that is in the file is not repeated. ``values.md`` and ``values.png``
are made from the files, with ``--show`` of what is there.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import aimgraph
from aimgraph.bench.frozen import StandsStill, lora_layers, with_lora
from aimgraph.experiment.images import Images
from aimgraph.experiment.networks import with_plain_convolutions
from aimgraph.runtime.layer_kinds import is_layer
from benchmarks.learning.journal import Journal, shown
from benchmarks.learning.tasks import Problem, Task, tasks
from benchmarks.learning.train import accuracy, train
from benchmarks.starts import settings_of

TASKS = ("sensor", "digits")
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SHAPES = {
    16: (4, 4, 1), 64: (8, 8, 1), 256: (8, 8, 4), 1024: (16, 16, 4), 4096: (16, 16, 16), 16384: (32, 32, 16),
}  # fmt: skip
SIZES = [list(shape) for shape in SHAPES.values()]
CHOOSING, SEEDS = 100, 5
MEMORIES = ("values", "whole set")
LORAS = ("LoRA, N", "LoRA, as whole set")
ALONE = ("biases", "last layer")
KEYS = ("arm", "values", "rate", "seed")
COLOURS = {"values": "C0", "whole set": "C1", "LoRA, N": "C2", "LoRA, as whole set": "C3", "biases": "C4"}


@dataclass(frozen=True)
class Arm:
    """A way to tune a frozen network.

    Attributes:
        kind: ``"values"``: N values, read by drawn weights that stay as they are. ``"whole set"``: values and read
            weights. ``"LoRA, N"``: about as many parameters as values, ``"LoRA, as whole set"``: about as many as a
            whole set has. ``"biases"``, ``"last layer"``: these of the network.
        values: N; 0 for those without a memory to be compared with.
    """

    kind: str
    values: int = 0


ARMS = (
    *(Arm(kind, count) for count in SHAPES for kind in (*MEMORIES, *LORAS)),
    *(Arm(kind) for kind in ALONE),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)  # of which runs at too large a rate are full: those would take ten times as long
    for name in () if given.show else given.task:
        task = tasks()[name]
        journal = Journal(given.out / f"values_{name}.json", KEYS, settings_of(task) | {"shape": SIZES})
        _do(name, task, journal, [(arm, rate, CHOOSING) for arm in ARMS for rate in RATES])
        best = _best_rates(journal.runs)
        seeds = range(CHOOSING + 1, CHOOSING + 1 + given.seeds)
        _do(name, task, journal, [(arm, best[arm], seed) for seed in seeds for arm in ARMS if arm in best])
    paths = {name: given.out / f"values_{name}.json" for name in TASKS}
    runs = {name: json.loads(path.read_text())["runs"] for name, path in paths.items() if path.exists()}
    runs = {name: found for name, found in runs.items() if any(_counted(found))}
    text = "\n".join(_table(name, found) for name, found in runs.items())
    (given.out / "values.md").write_text(text)
    print(text)
    _draw(runs, given.out / "values.png")


def _do(name: str, task: Task, journal: Journal, wanted: list[tuple[Arm, float, int]]) -> None:
    """Do the runs that a journal does not hold."""
    keys = [dict(zip(KEYS, (arm.kind, arm.values, rate, seed), strict=True)) for arm, rate, seed in wanted]
    missing = [(key, one) for key, one in zip(keys, wanted, strict=True) if key not in journal]
    for key, (arm, rate, seed) in shown(missing, name, lambda one: _said(*one[1])):
        started = time.perf_counter()
        found = measure(task, arm, rate, seed)
        journal.add(key | found | {"seconds": round(time.perf_counter() - started, 1)})


def _said(arm: Arm, rate: float, seed: int) -> str:
    return f"{arm.kind} {arm.values}, rate {rate:g}, seed {seed}"


def measure(task: Task, arm: Arm, rate: float, seed: int) -> dict[str, Any]:
    """Train once; the accuracy on both halves of the held-out images, or none where an arm can't have that size."""
    problem = task.make(seed)
    model = tuned(problem, arm, seed)
    if model is None:
        return {"parameters": 0, "choosing": None, "accuracy": None}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    chosen, counted = halves(problem.test)
    curve = train(model, trained, problem.batches, lambda net: accuracy(net, chosen), task.recipe, rate)
    return {
        "parameters": sum(parameter.numel() for parameter in trained),
        "choosing": round(curve.accuracy[-1], 4),
        "accuracy": round(accuracy(model, counted), 4),
    }


def halves(images: Images) -> tuple[Images, Images]:
    """Every other image, and the others."""
    first = torch.arange(len(images)) % 2 == 0
    return images.at(first), images.at(~first)


def tuned(problem: Problem, arm: Arm, seed: int) -> nn.Module | None:
    """The network, of which what an arm trains requires gradients; None where no part of it is small enough."""
    base, x = problem.model, problem.test.pixels[:2]
    if arm.kind in MEMORIES:
        options: dict[str, Any] = {"shape": SHAPES[arm.values], "read": "resize", "seed": seed}
        if arm.kind == "values":
            aim = aimgraph.transform(base, x, start="zero_values", **options)
            return aimgraph.freeze_reads(aimgraph.freeze_base(aim)).train()
        return aimgraph.freeze_base(aimgraph.transform(base, x, **options)).train()
    model: nn.Module = aimgraph.strip(aimgraph.transform(base, x))  # a copy
    model.requires_grad_(False)
    if arm.kind == "biases":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.rpartition(".")[2] == "bias")
    elif arm.kind == "last layer":
        [module for module in model.modules() if is_layer(module)][-1].requires_grad_(True)
    else:
        count = arm.values if arm.kind == "LoRA, N" else _of_whole_set(base, x, arm.values)
        torch.manual_seed(seed)
        adapted = _with_lora(with_plain_convolutions(model), count)
        return None if adapted is None else adapted.train()
    return StandsStill(model).train()


def _of_whole_set(base: nn.Module, x: torch.Tensor, values: int) -> int:
    planned = aimgraph.plan(base, x, shape=SHAPES[values], read="resize")
    return sum(memory.parameters for memory in planned.memories)


def _with_lora(model: nn.Module, count: int) -> nn.Module | None:
    """LoRA with about so many parameters: the largest rank that all layers can have, or rank 1 on the last layers.

    Layers of one rank have ``rank * (inputs * taps + outputs)`` parameters each.
    """
    sizes = {path: _rank_one(model.get_submodule(path)) for path in lora_layers(model, 1)}
    rank = max(1, count // sum(sizes.values()))
    left, layers = count, list[str]()
    for path in reversed(sizes):
        if rank * sizes[path] <= left:
            layers.append(path)
            left -= rank * sizes[path]
    return with_lora(model, rank, layers) if layers else None


def _rank_one(layer: nn.Module) -> int:
    weight = layer.get_parameter("weight")
    return weight[0].numel() + weight.shape[0]


def _best_rates(runs: list[dict[str, Any]]) -> dict[Arm, float]:
    """Of every arm that could be measured; the smaller one of two equals."""
    best: dict[Arm, tuple[float, float]] = {}
    for run in runs:
        if run["seed"] == CHOOSING and run["choosing"] is not None:
            arm, found = Arm(run["arm"], run["values"]), (run["choosing"], -run["rate"])
            best[arm] = max(best.get(arm, found), found)
    return {arm: -rate for arm, (_, rate) in best.items()}


def _counted(runs: list[dict[str, Any]]) -> Iterator[tuple[Arm, int, float, list[float]]]:
    """Arm, its parameters, its rate and its accuracies in percent."""
    best = _best_rates(runs)
    for arm, rate in best.items():
        those = [one for one in runs if (one["arm"], one["values"], one["rate"]) == (arm.kind, arm.values, rate)]
        found = [100 * one["accuracy"] for one in those if one["seed"] > CHOOSING]
        if found:
            yield arm, those[0]["parameters"], rate, found


def _told(found: list[float]) -> str:
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    return f"{statistics.mean(found):.1f} ± {spread:.1f}"


def _table(name: str, runs: list[dict[str, Any]]) -> str:
    cells = {arm: (f"{_told(found)} ({count:,}; {rate:g})", len(found)) for arm, count, rate, found in _counted(runs)}
    kinds = [*MEMORIES, *LORAS]
    seeds = max((count for _, count in cells.values()), default=0)
    lines = [
        f"{name}: accuracy in percent, mean ± standard deviation of {seeds} seeds (parameters trained; rate)",
        "",
        f"| N | {' | '.join(kinds)} |",
        f"|---:|{'---:|' * len(kinds)}",
    ]
    for values in SHAPES:
        row = [cells.get(Arm(kind, values), ("-", 0))[0] for kind in kinds]
        lines.append(f"| {values:,} | {' | '.join(row)} |")
    lines += [f"| {kind} | {cells[Arm(kind)][0]} | | | |" for kind in ALONE if Arm(kind) in cells]
    return "\n".join(lines) + "\n"


def _draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Accuracy over parameters, one panel a task."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, max(1, len(runs)), figsize=(6 * max(1, len(runs)), 4.5), squeeze=False)
    for panel, (name, found) in zip(panels[0], runs.items(), strict=False):
        points: dict[str, list[tuple[int, list[float]]]] = {}
        for arm, parameters, _, accuracies in _counted(found):
            points.setdefault(arm.kind, []).append((parameters, accuracies))
        for kind, those in points.items():
            those.sort()
            counts = [count for count, _ in those]
            means = [statistics.mean(one) for _, one in those]
            spreads = [statistics.stdev(one) if len(one) > 1 else 0.0 for _, one in those]
            panel.errorbar(counts, means, spreads, marker="o", capsize=3, label=kind, color=COLOURS.get(kind, "C5"))
        panel.set(xscale="log", xlabel="parameters trained", ylabel="accuracy, %", title=name)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
