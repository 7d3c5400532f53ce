"""What does it cost that a unit of an experiment runs in a process of its own, and writes a state to go on from?

Run as ``python -m benchmarks.experiment_overhead --out benchmarks/results``. One unit is trained by the runner, whose
processes have imported everything already, and by a plain loop of the same steps and the same looks at the same
examples, in turns. The ratio of the wall-clock times is what the runner costs.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from aimgraph.experiment.data import examples, order_of
from aimgraph.experiment.images import Examples
from aimgraph.experiment.networks import small_resnet
from aimgraph.experiment.recipe import Recipe, recipe_of
from aimgraph.experiment.results import Unit
from aimgraph.experiment.work import JOB, Task
from aimgraph.units.runner import Limits, Outcome, run_local

RATE = 3e-3


def recipe(epochs: int) -> Recipe:
    """Digits, by a small residual network without a memory."""
    model = "aimgraph.experiment.networks:small_resnet"
    data = {"name": "digits", "validation": 200}
    arms = {"base": {"kind": "base"}}
    return recipe_of(
        {"name": "overhead", "model": model, "data": data, "arms": arms, "rates": [RATE], "epochs": epochs}
    )


def by_runner(one: Recipe, epochs: int, folder: Path) -> float:
    """Seconds until the result is there."""
    task = Task(one, Unit("base", RATE, 1, epochs, tests=True), folder)
    outcomes: list[Outcome] = []
    started = time.perf_counter()
    run_local(JOB, [task], 1, Limits(seconds=3600), lambda _, outcome: outcomes.append(outcome))
    seconds = time.perf_counter() - started
    trained = len(outcomes[0].data["loss"]) if outcomes[0].data else 0
    if trained != epochs:
        raise RuntimeError(f"the unit trained {trained} of {epochs} epochs: {outcomes[0]}")
    return seconds


def by_hand(one: Recipe, epochs: int) -> float:
    """Seconds of a plain loop."""
    started = time.perf_counter()
    parts = examples(one.data, 1)
    torch.manual_seed(1)
    model = small_resnet()
    optimiser = torch.optim.Adam(model.parameters(), lr=RATE)
    for epoch in range(epochs):
        model.train()
        for index in order_of(len(parts.train), one.data, 1, epoch, one.batch):
            batch = parts.train.at(index)
            loss = F.cross_entropy(model(batch.pixels), batch.labels)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        accuracy(model, parts.validation, one.look)
    accuracy(model, parts.test, one.look)
    return time.perf_counter() - started


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: Examples, look: int) -> float:
    """Share of images that the model is right about."""
    model.eval()
    metric = MulticlassAccuracy(10, average="micro")
    for index in torch.arange(len(images)).split(look):
        batch = images.at(index)
        metric.update(model(batch.pixels), batch.labels)
    return float(metric.compute())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=100, help="so many that a unit takes about a minute")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    one, rounds = recipe(given.epochs), []
    with tempfile.TemporaryDirectory() as folder:
        by_runner(recipe(1), 1, Path(folder))  # the process that others are copies of is there from now on
        by_hand(recipe(1), 1)
        for _ in range(given.rounds):
            rounds.append({"plain": by_hand(one, given.epochs), "runner": by_runner(one, given.epochs, Path(folder))})
            print({name: round(seconds, 2) for name, seconds in rounds[-1].items()}, flush=True)
    ratio = median(found["runner"] / found["plain"] for found in rounds)
    plain = median(found["plain"] for found in rounds)
    print(f"runner / plain: {ratio:.4f}, of {plain:.1f} s")
    facts = {"epochs": given.epochs, "plain_seconds": round(plain, 1), "runner_over_plain": round(ratio, 4)}
    facts |= {"rounds": [{name: round(seconds, 2) for name, seconds in found.items()} for found in rounds]}
    facts |= {"torch": torch.__version__.split("+")[0]}
    (given.out / "experiment_overhead.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
