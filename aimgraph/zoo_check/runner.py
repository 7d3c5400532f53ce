"""Runs the rows of a zoo check, each in a process of its own: one crash costs one row."""

import json
import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from aimgraph.zoo_check.levels import check
from aimgraph.zoo_check.manifest import Task
from aimgraph.zoo_check.rows import CRASHED, TIMEOUT, Row

Report = Callable[[Task, Row], None]
"""Takes every row as soon as it is there."""


START_SECONDS = 300.0
"""How long a process may take to import what it needs; its own time begins after that."""


@dataclass(frozen=True)
class Limits:
    """What one row may use.

    Attributes:
        seconds: Wall-clock time.
        gibibytes: Memory, beyond what an idle process has.
        threads: Threads of torch; one keeps results the same on every machine.
    """

    seconds: float = 900.0
    gibibytes: float = 10.0
    threads: int = 1


def _limit_memory(gibibytes: float) -> None:
    """Let an allocation beyond the limit fail instead of the whole machine; where the system offers that."""
    if sys.platform != "linux":  # elsewhere the time limit is what remains
        return
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # what RLIMIT_DATA counts
    limit = used + int(gibibytes * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def run_local(tasks: list[Task], jobs: int, limits: Limits, report: Report) -> None:
    """Run all tasks, `jobs` at a time.

    Args:
        tasks: Models and levels.
        jobs: How many processes at once.
        limits: Of each.
        report: Called with every task and its row.
    """
    waiting, running = list(reversed(tasks)), _Running(_context(), limits)
    try:
        while waiting or running.workers:
            while waiting and len(running.workers) < jobs:
                running.start(waiting.pop())
            for task, row in running.finished():
                report(task, row)
    finally:
        running.stop()


def _context() -> Any:
    """How processes are started: copies of one that has imported everything, where that is safe."""
    if sys.platform != "linux":  # Windows can't fork; the libraries of macOS don't survive it
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aimgraph.zoo_check.preload"])
    return context


@dataclass
class _Worker:
    process: BaseProcess
    task: Task
    deadline: float

    def row(self, status: str, reason: str) -> Row:
        entry, level = self.task
        return Row(entry.called, level, status, reason=reason)


@dataclass
class _Running:
    """The processes at work, by the connection that their row comes through."""

    context: Any
    limits: Limits
    workers: dict[Connection, _Worker] = field(default_factory=dict)

    def start(self, task: Task) -> None:
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_work, args=(sender, task, self.limits), daemon=True)
        process.start()
        sender.close()
        self.workers[receiver] = _Worker(process, task, time.monotonic() + START_SECONDS)

    def finished(self) -> Iterator[tuple[Task, Row]]:
        """The rows that came, of workers that died, and of those past their time."""
        ready = wait(list(self.workers), timeout=0.2)
        for connection, worker in list(self.workers.items()):
            row = self._received(connection, worker) if connection in ready else None
            if row is None and time.monotonic() > worker.deadline:
                row = worker.row(TIMEOUT, f"not done after {self.limits.seconds:g} s")
            if row is not None:
                self._end(connection)
                yield worker.task, row

    def _received(self, connection: Connection, worker: _Worker) -> Row | None:
        """The row that a process sent or that its death makes; None where it said that it begins."""
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):  # before a message, or inside one
            worker.process.join(5)
            return worker.row(CRASHED, f"its process ended with code {worker.process.exitcode}")
        if message:
            return Row(**json.loads(message))
        worker.deadline = time.monotonic() + self.limits.seconds
        return None

    def _end(self, connection: Connection) -> None:
        process = self.workers.pop(connection).process
        process.kill()
        process.join()
        connection.close()

    def stop(self) -> None:
        for connection in list(self.workers):
            self._end(connection)


def _work(sender: Connection, task: Task, limits: Limits) -> None:
    if hasattr(signal, "alarm"):  # nobody may be there to end it: its parent can be killed
        signal.alarm(math.ceil(limits.seconds) + 60)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # a model may print; stdout is for results
        os.dup2(nowhere, stream)
    sender.send_bytes(b"")
    _limit_memory(limits.gibibytes)
    torch.set_num_threads(limits.threads)
    sender.send_bytes(json.dumps(asdict(check(*task))).encode())
    sender.close()
    os._exit(0)  # nothing to clean up; some libraries take seconds to
