"""Which factor of a memory's reads should start at zero, and how large should the other be?

Run as ``python -m benchmarks.starts --out benchmarks/results``. Every run is a task, a kind of memory, a start, a
learning rate and a seed; it is written to ``starts_<task>.json`` when it is done, and a run that is in the file is not
repeated. `benchmarks.starts_table` makes the tables and the picture.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import aimgraph
from aimgraph.experiment.idx import FASHION_FOLDER
from benchmarks.learning.journal import Journal, shown
from benchmarks.learning.starts import Start, parameter_groups, redraw
from benchmarks.learning.tasks import Problem, Task, tasks
from benchmarks.learning.train import accuracy, train

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
STARTS = (
    Start("default"),
    *(Start("zero_reads", scale) for scale in (0.02, 0.1, 0.3, 0.5, 1.0)),
    *(Start("noise", scale) for scale in (0.02, 0.1, 0.3, 0.5, 1.0, 3.0)),
    *(Start("zero_values", scale) for scale in (0.3, 1.0, 3.0)),
    Start("zero_values, memory bound"),
    Start("zero_values, feature bound"),
    *(Start("drawn", scale) for scale in (0.02, 1.0)),
    *(Start("noise, 1/n", scale) for scale in (1.0,)),
    *(Start("noise, 1/sqrt(n)", scale) for scale in (0.3, 1.0, 2.0, 3.0)),
    Start("noise, min(1, 25/n)", 0.5),
    Start("coordinates"),
)
MEMORIES: dict[str, dict[str, Any]] = {
    "static": {},
    "written, gradient": {"updates": "stages", "carry": "gradient"},
    "written, state": {"updates": "stages", "carry": "state"},
}
KEYS = ("memory", "start", "rate", "seed")


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        memory: A key of `MEMORIES`.
        start: How the memory starts.
        rate: Adam's learning rate.
        seed: Of the network, the memory and the order of the images.
    """

    memory: str
    start: Start
    rate: float
    seed: int

    def key(self) -> dict[str, Any]:
        """What tells it from the others in a journal."""
        return {"memory": self.memory, "start": str(self.start), "rate": self.rate, "seed": self.seed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", nargs="+", choices=list(tasks()), default=list(tasks()))
    parser.add_argument("--memory", nargs="+", choices=list(MEMORIES), default=["static"])
    parser.add_argument("--start", nargs="+", choices=[str(start) for start in STARTS], help="by default all")
    parser.add_argument("--rate", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--fashion-mnist", type=Path, default=FASHION_FOLDER, help="folder of the IDX files")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    for name in given.task:
        task = tasks(given.fashion_mnist)[name]
        starts = [start for start in starts_for(task) if given.start is None or str(start) in given.start]
        runs = [
            Run(memory, start, rate, seed)
            for seed in seeds for memory in given.memory for start in starts for rate in given.rate
        ]  # fmt: skip
        measure_all(name, task, runs, given.out)


def starts_for(task: Task) -> list[Start]:
    """Those that a task can have: coordinates need two channels."""
    two = task.shape != "auto" and task.shape[-1] > 1
    return [start for start in STARTS if two or start.kind != "coordinates"]


def measure_all(name: str, task: Task, runs: list[Run], out: Path, prefix: str = "starts") -> None:
    """Do the runs of a task that its journal does not hold."""
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / f"{prefix}_{name}.json", KEYS, settings_of(task))
    missing = [run for run in runs if run.key() not in journal]
    for run in shown(missing, name, _told):
        started = time.perf_counter()
        result = measure(task, run)
        journal.add(run.key() | result | {"seconds": round(time.perf_counter() - started, 1)})


def _told(run: Run) -> str:
    return f"{run.start}, rate {run.rate:g}, seed {run.seed}"


def settings_of(task: Task) -> dict[str, Any]:
    """What all runs of a task have in common."""
    facts = {
        "task": task.about,
        "shape": task.shape,
        "exclude": task.exclude,
        "frozen": task.frozen,
        "optimiser": "Adam",
    }
    settings = facts | asdict(task.recipe) | {"torch": torch.__version__.split("+")[0]}
    return dict(json.loads(json.dumps(settings)))  # as a journal gives it back


def measure(task: Task, run: Run) -> dict[str, Any]:
    """Train once."""
    problem = task.make(run.seed)
    model, parameters = prepared(task, problem, run)
    if not parameters:
        return {"steps": [0], "accuracy": [accuracy(model, problem.test)], "reached": None}

    def measured(model: torch.nn.Module) -> float:
        return accuracy(model, problem.test)

    groups = parameter_groups(model, run.start, run.rate, parameters)
    curve = train(model, groups, problem.batches, measured, task.recipe, run.rate)
    return {"steps": curve.steps, "accuracy": [round(one, 4) for one in curve.accuracy], "reached": curve.reached}


def prepared(task: Task, problem: Problem, run: Run) -> tuple[torch.nn.Module, list[torch.nn.Parameter]]:
    """The network with its memory, in train mode, and what is to be trained."""
    if run.start.kind == "none":
        model = problem.model.train(not task.frozen)
        return model, [] if task.frozen else list(model.parameters())
    options = MEMORIES[run.memory] | run.start.options
    options |= {"shape": task.shape, "exclude": task.exclude, "seed": run.seed}
    aim = aimgraph.transform(problem.model, problem.test.pixels[:2], **options)
    redraw(aim, run.start, run.seed)
    if task.frozen:
        aimgraph.freeze_base(aim)
    trained = aimgraph.memory_parameters(aim) if task.frozen else aim.parameters()
    return aim.train(), [parameter for parameter in trained if parameter.requires_grad]


if __name__ == "__main__":
    main()
