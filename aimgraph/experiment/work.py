"""What the process of a unit does: it trains here, or has a launcher start several processes that train together."""

import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aimgraph.errors import AimgraphError
from aimgraph.experiment.recipe import Recipe, recipe_of
from aimgraph.experiment.results import Unit
from aimgraph.experiment.unit import run
from aimgraph.units.runner import Job, Tell
from aimgraph.user_code import told_error

FAILED = "failed"
"""Key of the reason, in the data of a unit that has no result."""

EPOCHS = "epochs done: "
"""What a line begins with in which a launched unit says how far it is."""


@dataclass(frozen=True)
class Task:
    """A unit, and what it takes to train it.

    Attributes:
        recipe: The experiment.
        unit: The unit.
        folder: For its state.
        launch: A command that starts it, as ``accelerate launch --num_processes 2``; empty for none.
    """

    recipe: Recipe
    unit: Unit
    folder: Path
    launch: tuple[str, ...] = ()


def _work(task: Task, tell: Tell) -> dict[str, Any]:
    return _launched(task, tell) if task.launch else _here(task, tell)


JOB: Job[Task] = Job(_work, "aimgraph.experiment.preload")


def _here(task: Task, tell: Callable[[int], Any]) -> dict[str, Any]:
    """The result as data, or why there is none; what is no error of aimgraph's leaves its traceback in the folder."""
    try:
        return run(task.recipe, task.unit, task.folder, tell).to_dict()
    except AimgraphError as error:
        return {FAILED: f"{type(error).__name__}: {error}"}
    except Exception as error:  # a unit's end is the unit's alone
        path = task.folder / f"{task.unit}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc(), encoding="utf-8")
        return {FAILED: f"{told_error(error)}; the whole of it is in {path}"}


def _launched(task: Task, tell: Tell) -> dict[str, Any]:
    """The same by a launcher, whose processes end before this one goes on."""
    given, made = (task.folder / f"{task.unit}.{end}" for end in ("task.json", "result.json"))
    given.parent.mkdir(parents=True, exist_ok=True)
    made.unlink(missing_ok=True)
    content = {"recipe": task.recipe.model_dump(mode="json"), "unit": asdict(task.unit)}
    given.write_text(json.dumps(content), encoding="utf-8")
    log = task.folder / f"{task.unit}.txt"
    with log.open("w", encoding="utf-8") as errors:
        command = [*task.launch, "-m", "aimgraph.experiment.work", str(given), str(made)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout or ():
                if line.startswith(EPOCHS):
                    tell(int(line.removeprefix(EPOCHS)))
    if not made.exists():
        return {FAILED: f"{task.launch[0]} ended with code {process.returncode}; what it said is in {log}"}
    result: dict[str, Any] = json.loads(made.read_text(encoding="utf-8"))
    for path in (given, made, log):
        path.unlink()
    return result


def main() -> None:
    """What each of the launched processes does."""
    given, made = map(Path, sys.argv[1:])
    content = json.loads(given.read_text(encoding="utf-8"))
    task = Task(recipe_of(content["recipe"]), Unit(**content["unit"]), given.parent)
    result = _here(task, lambda done: print(f"{EPOCHS}{done}", flush=True))
    from accelerate import PartialState

    if PartialState().is_main_process:
        draft = made.with_suffix(".part")
        draft.write_text(json.dumps(result), encoding="utf-8")
        draft.replace(made)
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
