"""What widening gives: how close a budget comes, and how training goes on after it.

Run as ``python -m benchmarks.widening --out benchmarks/results``. Writes ``widening.json`` and ``widening.png``;
``make performance`` puts the tables into docs/widening.md:

- **A control for a memory.** Four networks are widened to the number of parameters that they have with a memory of
  the default budget: how far apart the two are, over what the memory adds.
- **Growth.** A small ResNet learns the digits for 200 steps, is widened to twice the parameters, and learns on for 300,
  in several ways, with five seeds: the loss on held-out images before, at once, and at its worst in the first 50 steps;
  the accuracy at the end; how far copies have come apart. Beside it: the same network as it was, and the wide one that
  was made so from the start.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Generator, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.experiment.digits import digits
from aimgraph.experiment.images import Images
from aimgraph.experiment.networks import small_resnet
from aimgraph.models_zoo.loader import load_model
from benchmarks.learning.train import accuracy, shuffled

mpl.use("agg")
import matplotlib.pyplot as plt

CONTROLS = {
    "ResNet-50": "torchvision/resnet50",
    "VGG-16": "torchvision/vgg16",
    "MLP": "zoo/mlp",
    "EfficientNet-Lite0": "zoo/efficientnet_lite0",
}

BEFORE, AFTER, EARLY, RATE, FACTOR = 200, 300, 50, 3e-3, 2.0
LOOKS = (0, 1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300)


@dataclass(frozen=True)
class Way:
    """How a network grows.

    Attributes:
        how: As for `aimgraph.widen`; empty to stay as it is.
        noise: The same.
        carried: Whether the optimiser goes on with its moments, rather than without.
        anew: Whether the wide network starts from weights of its own, at the first step of all.
    """

    how: Any = ""
    noise: float = 0.0
    carried: bool = True
    anew: bool = False


WAYS = {
    "as it was": Way(),
    "copies": Way("copy"),
    "copies, noise 0.1": Way("copy", 0.1),
    "copies, noise 0.5": Way("copy", 0.5),
    "copies, noise 0.5, optimiser anew": Way("copy", 0.5, carried=False),
    "new channels": Way("zero"),
    "new channels, optimiser anew": Way("zero", carried=False),
    "wide from the start": Way("copy", anew=True),
}


@dataclass(frozen=True)
class Run:
    """One network, trained.

    Attributes:
        before: Loss on held-out images when it grows.
        losses: Steps after that -> the loss then.
        accuracy: On held-out images at the end.
        apart: Distance of each copy from its channel, over the size of the channel: the mean; 0 without copies.
        parameters: At the end.
    """

    before: float
    losses: dict[int, float]
    accuracy: float
    apart: float
    parameters: int

    @property
    def worst(self) -> float:
        """The largest loss of the first steps, over the one before."""
        return max(loss for step, loss in self.losses.items() if step <= EARLY) / self.before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    controls = {name: control(model) for name, model in CONTROLS.items()}
    for name, row in controls.items():
        print(f"{name}: {row}", flush=True)
    runs: dict[str, list[Run]] = {}
    for name, way in WAYS.items():
        runs[name] = [grown(way, seed) for seed in range(given.seeds)]
        print(f"{name}: {statistics.mean(run.accuracy for run in runs[name]):.4f}", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    data = {"controls": controls, "growth": {name: [asdict(run) for run in own] for name, own in runs.items()}}
    (given.out / "widening.json").write_text(json.dumps(data, indent=1) + "\n")
    for table in TABLES.values():
        print(table(data))
    draw(runs, given.out / "widening.png")


def control(model: str) -> dict[str, int | float]:
    """How many parameters a network has, with a memory, and widened to as many."""
    base = load_model(model)
    aim = aimgraph.transform(base)
    with_memory = _count(aim)
    plan = aimgraph.widen_plan(base, parameters=with_memory)
    added = with_memory - plan.parameters
    return {
        **{"parameters": plan.parameters, "memory": with_memory, "wide": plan.widened},
        "apart": (plan.widened - with_memory) / added,
    }


def grown(way: Way, seed: int) -> Run:
    """Train, grow, and train on."""
    torch.manual_seed(seed)
    split = digits()
    model: nn.Module = small_resnet()
    if way.anew:
        model = _redrawn(aimgraph.widen(model, split.test.pixels[:2], parameters=FACTOR))
    batches = shuffled(split.train, 32, Generator().manual_seed(seed))
    optimiser: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(BEFORE):
        _step(model, optimiser, next(batches))
    before, copies = _loss(model, split.test), None
    if way.how and not way.anew:
        wide = aimgraph.widen(model, split.test.pixels[:2], parameters=FACTOR, how=way.how, noise=way.noise, seed=seed)
        copies = _pairs(model, wide) if way.how == "copy" else None
        carried = aimgraph.widen_optimizer(optimiser, wide)
        optimiser = carried if way.carried else torch.optim.Adam(wide.parameters(), lr=RATE)
        model = wide
    losses = {0: _loss(model, split.test)}
    for step in range(1, AFTER + 1):
        _step(model, optimiser, next(batches))
        if step in LOOKS:
            losses[step] = _loss(model, split.test)
    apart = statistics.mean(copies()) if copies else 0.0
    return Run(before, losses, accuracy(model, split.test), apart, _count(model))


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, images: Images) -> None:
    model.train()
    optimiser.zero_grad()
    F.cross_entropy(model(images.pixels), images.labels).backward()
    optimiser.step()


@torch.no_grad()
def _loss(model: nn.Module, images: Images) -> float:
    return F.cross_entropy(model.eval()(images.pixels), images.labels).item()


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _redrawn(model: nn.Module) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            layer.reset_parameters()
    return model


def _pairs(model: nn.Module, wide: nn.Module) -> Callable[[], Iterator[float]]:
    """How far each copy of a channel is from it, of the weights that make them, when asked."""
    stem = wide.get_parameter("0.weight")
    same = [(i, j) for i in range(len(stem)) for j in range(i) if torch.equal(stem[i], stem[j])]

    def apart() -> Iterator[float]:
        for i, j in same:
            yield ((stem[i] - stem[j]).norm() / stem[j].norm()).item()

    return apart


def controls_table(controls: dict[str, dict[str, int | float]]) -> str:
    """Rows of networks, in Markdown."""
    rows = [
        "| network | parameters | with a memory | widened | apart, over what the memory adds |",
        "|---|---:|---:|---:|---:|",
    ]
    rows += [
        f"| {name} | {row['parameters']:,} | {row['memory']:,} | {row['wide']:,} | {row['apart']:+.2%} |"
        for name, row in controls.items()
    ]
    return "\n".join(rows)


def growth_table(growth: dict[str, list[dict[str, Any]]]) -> str:
    """Rows of ways to grow, in Markdown: means over the seeds."""
    runs = {name: [Run(**one | {"losses": _by_step(one)}) for one in own] for name, own in growth.items()}
    rows = [
        "| way | parameters | loss when it grows | at once / before | worst in 50 steps / before | accuracy, % "
        "| copies apart |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, own in runs.items():
        at_once = statistics.mean(run.losses[0] / run.before for run in own)
        spread = statistics.stdev(run.accuracy for run in own) if len(own) > 1 else 0.0
        rows.append(
            f"| {name} | {own[0].parameters:,} | {_mean(own, 'before'):.4f} | {at_once:.6f} "
            f"| {_mean(own, 'worst'):.2f} | {100 * _mean(own, 'accuracy'):.2f} +- {100 * spread:.2f} "
            f"| {_mean(own, 'apart'):.3f} |"
        )
    return "\n".join(rows)


def _by_step(run: dict[str, Any]) -> dict[int, float]:
    return {int(step): loss for step, loss in run["losses"].items()}


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "widening_controls": lambda data: controls_table(data["controls"]),
    "widening_growth": lambda data: growth_table(data["growth"]),
}


def _mean(runs: list[Run], name: str) -> float:
    return statistics.mean(getattr(run, name) for run in runs)


def draw(runs: dict[str, list[Run]], path: Path) -> None:
    """The loss on held-out images after growth, of each way."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for name, own in runs.items():
        steps = list(own[0].losses)
        axes.plot(
            [step + 1 for step in steps],
            [statistics.mean(run.losses[step] for run in own) for step in steps],
            label=name,
            linestyle="--" if WAYS[name].anew or not WAYS[name].how else "-",
        )
    axes.set(xscale="log", yscale="log", xlabel="steps after growth, + 1", ylabel="loss on held-out digits")
    axes.set_title(f"A small ResNet widened to {FACTOR:g} times the parameters after {BEFORE} steps")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
