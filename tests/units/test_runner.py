"""Processes tell how far they are, and end with all that they started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aimgraph.units.runner import Job, Limits, Outcome, run_local
from tests.units.work import tells, waits

PRELOAD = "aimgraph.units.runner"


def test_work_tells_how_far_it_is() -> None:
    heard: list[tuple[int, Any]] = []
    outcomes: dict[int, Outcome] = {}
    run_local(
        Job(tells, PRELOAD), [2, 0], 1, Limits(), outcomes.__setitem__, lambda task, data: heard.append((task, data))
    )
    assert heard == [(2, {"step": 0}), (2, {"step": 1})]
    assert outcomes == {2: Outcome({"twice": 4}), 0: Outcome({"twice": 0})}


def alive(process: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def numbers(path: Path) -> list[int]:
    """What the work wrote, as soon as it has."""
    for _ in range(600):
        if path.exists() and len(path.read_text().split()) == 2:
            return [int(one) for one in path.read_text().split()]
        time.sleep(0.1)
    raise AssertionError("the work did not begin")


def ended(processes: list[int]) -> bool:
    for _ in range(100):
        if not any(map(alive, processes)):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_the_time_limit_ends_what_the_work_started_too(tmp_path: Path) -> None:
    outcomes: list[Outcome] = []
    run_local(Job(waits, PRELOAD), [str(tmp_path / "one")], 1, Limits(seconds=3), lambda _, one: outcomes.append(one))
    assert outcomes == [Outcome(reason="not done after 3 s", late=True)]
    assert ended(numbers(tmp_path / "one"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_goes_on_after_the_parent_was_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-m", "tests.units.work", str(tmp_path / "one")], env=dict(os.environ))
    try:
        below = numbers(tmp_path / "one")
        assert all(map(alive, below))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert ended(below)
