"""The same rows on Ray, also when a worker is lost."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aimgraph.errors import ConfigError
from aimgraph.units import remote
from aimgraph.units.remote import connected
from aimgraph.units.runner import Limits
from aimgraph.zoo_check.manifest import Entry, Task, read_manifest
from aimgraph.zoo_check.rows import CRASHED, PASSED, TIMEOUT, Row
from aimgraph.zoo_check.runner import Report, run_local, run_remote
from aimgraph.zoo_check.sources import FOLDER
from tests.zoo_check.factories import MARKER

INPUTS = "2x3x8x8"
LIMITS = Limits(seconds=60)


def task(name: str, level: str = "structure") -> Task:
    return Entry(f"tests.zoo_check.factories:{name}", inputs=INPUTS, small=INPUTS), level


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray") / "processes"


@pytest.fixture(scope="module", autouse=True)
def cluster(marker: Path) -> Iterator[Any]:
    """One Ray of two CPUs for all tests; its workers get the environment it is started with."""
    os.environ[MARKER] = str(marker)
    with connected(remote.LOCAL, 2) as ray:
        yield ray
    del os.environ[MARKER]


def collect(run: Any, tasks: list[Task]) -> dict[str, Row]:
    """Name -> row without its time; every task is reported once, with its own row."""
    rows: dict[Task, Row] = {}

    def report(task: Task, row: Row) -> None:
        assert task not in rows
        assert (task[0].name, task[1]) == (row.name, row.level)
        rows[task] = replace(row, seconds=0.0)

    run(tasks, report)
    return {f"{entry.name} {level}": row for (entry, level), row in rows.items()}


def on_ray(tasks: list[Task], report: Report, limits: Limits = LIMITS) -> None:
    run_remote(tasks, remote.LOCAL, 2, limits, report)


def here(tasks: list[Task], report: Report) -> None:
    run_local(tasks, 1, LIMITS, report)


@pytest.mark.slow
def test_the_table_is_that_of_a_local_run() -> None:
    own = [entry for entry in read_manifest(FOLDER / "zoo.csv") if entry.parameters < 1e6]
    assert own
    tasks = [(entry, level) for entry in own for level in ("structure", "numeric")]
    tasks += [task("small", "numeric"), task("Partly"), task("plain"), task("exits"), task("none")]
    rows = collect(on_ray, tasks)
    assert rows == collect(here, tasks)
    assert len(rows) == len(tasks)
    assert {row.status for row in rows.values()} == {PASSED, "refused", CRASHED}


def test_the_time_limit_holds_there_too() -> None:
    rows = collect(lambda tasks, report: on_ray(tasks, report, Limits(seconds=3)), [task("sleeps")])
    (row,) = rows.values()
    assert (row.status, row.reason) == (TIMEOUT, "not done after 3 s")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker in /proc")
def test_a_lost_worker_loses_no_row(marker: Path) -> None:
    tasks = [task("small"), task("loses_its_worker"), task("Partly")]
    rows = collect(on_ray, tasks)
    assert [row.status for row in rows.values()] == [PASSED] * 3
    assert len(rows) == 3
    processes = marker.read_text().split()
    assert len(processes) == 2
    assert len(set(processes)) == 2


def test_another_aimgraph_on_a_machine_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "code_digest", lambda: "another")
    with pytest.raises(ConfigError, match="aimgraph differs between this machine and "):
        collect(on_ray, [task("small")])


def test_an_address_where_nobody_answers_is_an_error_at_once() -> None:
    with pytest.raises(ConfigError, match=r"--ray 127\.0\.0\.1:1: no Ray there: .*refused"):
        run_remote([task("small")], "127.0.0.1:1", 1, LIMITS, lambda task, row: None)


def test_nothing_to_do_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert collect(on_ray, []) == {}


def test_without_ray_the_command_to_install_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'aimgraph\[ray\]'"):
        collect(on_ray, [task("small")])
