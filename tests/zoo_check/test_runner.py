"""A process per model: whatever a model does to it costs one row."""

import sys

import pytest

from aimgraph.units.runner import Limits
from aimgraph.zoo_check.manifest import Entry, Task
from aimgraph.zoo_check.rows import CRASHED, PASSED, REFUSED, TIMEOUT, Row
from aimgraph.zoo_check.runner import run_local

INPUTS = "2x3x8x8"


def task(name: str, level: str = "structure") -> Task:
    return Entry(f"tests.zoo_check.factories:{name}", inputs=INPUTS), level


def run(tasks: list[Task], limits: Limits, jobs: int = 1) -> dict[str, Row]:
    rows = {}

    def report(task: Task, row: Row) -> None:
        assert (row.name, row.level) == (task[0].name, task[1])
        assert task not in rows
        rows[task] = row

    run_local(tasks, jobs, limits, report)
    return {entry.name.partition(":")[2]: row for (entry, _), row in rows.items()}


def test_a_process_that_ends_costs_one_row() -> None:
    rows = run([task("exits"), task("segfaults"), task("small")], Limits(), jobs=2)
    assert (rows["exits"].status, rows["exits"].reason) == (CRASHED, "its process ended with code 7")
    assert (rows["segfaults"].status, rows["segfaults"].reason) == (CRASHED, "its process ended with code -11")
    assert (rows["small"].status, rows["small"].rewritten, rows["small"].called) == (PASSED, 2, 2)


def test_the_time_limit_ends_one_row_and_begins_when_the_process_does() -> None:
    rows = run([task("sleeps"), task("small")], Limits(seconds=8))
    assert (rows["sleeps"].status, rows["sleeps"].reason) == (TIMEOUT, "not done after 8 s")
    assert rows["small"].status == PASSED


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what RLIMIT_DATA limits")
def test_the_memory_limit_fails_one_row() -> None:
    rows = run([task("hungry"), task("small")], Limits(gibibytes=1))
    assert rows["hungry"].status == REFUSED
    assert "MemoryError" in rows["hungry"].reason
    assert rows["small"].status == PASSED
    assert run([task("hungry")], Limits(gibibytes=4))["hungry"].status == PASSED


def test_an_interruption_ends_the_processes_and_keeps_the_rows() -> None:
    import multiprocessing

    rows = []

    def report(_: Task, row: Row) -> None:
        rows.append(row)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local([task("small"), task("sleeps")], 2, Limits(), report)
    assert [row.status for row in rows] == [PASSED]
    assert multiprocessing.active_children() == []
