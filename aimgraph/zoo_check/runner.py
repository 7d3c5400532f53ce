"""Runs the rows of a zoo check, each in a process of its own: one crash costs one row."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeAlias

from aimgraph.units import remote, runner
from aimgraph.units.runner import Job, Limits, Outcome, Tell
from aimgraph.zoo_check.levels import check
from aimgraph.zoo_check.manifest import Task
from aimgraph.zoo_check.rows import CRASHED, TIMEOUT, Row

Report: TypeAlias = Callable[[Task, Row], None]
"""Takes every row as soon as it is there."""


def run_local(tasks: list[Task], jobs: int, limits: Limits, report: Report) -> None:
    """Run all tasks, `jobs` at a time.

    Args:
        tasks: Models and levels.
        jobs: How many processes at once.
        limits: Of each.
        report: Called with every task and its row.
    """
    runner.run_local(JOB, tasks, jobs, limits, lambda task, outcome: report(task, _row(task, outcome)))


def run_remote(tasks: list[Task], address: str, jobs: int, limits: Limits, report: Report) -> None:
    """The same on Ray; see `aimgraph.units.remote.run_remote`."""
    remote.run_remote(JOB, tasks, address, jobs, limits, lambda task, outcome: report(task, _row(task, outcome)))


def _checked(task: Task, _: Tell) -> dict[str, Any]:
    return asdict(check(*task))


JOB: Job[Task] = Job(_checked, "aimgraph.zoo_check.preload")


def _row(task: Task, outcome: Outcome) -> Row:
    if outcome.data is not None:
        return Row(**outcome.data)
    entry, level = task
    return Row(entry.called, level, TIMEOUT if outcome.late else CRASHED, reason=outcome.reason)
