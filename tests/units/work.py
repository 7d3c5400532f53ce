"""What processes of the tests do."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from aimgraph.units.runner import Job, Limits, Outcome, Tell, run_local


def tells(task: int, tell: Tell) -> dict[str, int]:
    for step in range(task):
        tell({"step": step})
    return {"twice": 2 * task}


def waits(task: str, tell: Tell) -> None:
    """Starts a process of its own, writes both numbers, and waits."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(task).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


def main() -> None:
    """What the process does that is killed."""
    job: Job[str] = Job(waits, "aimgraph.units.runner")

    def report(task: str, outcome: Outcome) -> Any:
        raise AssertionError(outcome)

    run_local(job, sys.argv[1:], 1, Limits(), report)


if __name__ == "__main__":
    main()
