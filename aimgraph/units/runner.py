"""Runs pieces of work, each in a process of its own: one crash costs one of them."""

import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

Tell = Callable[[Any], None]
"""Takes JSON-ready data that says how far a piece of work is."""

START_SECONDS = 300.0
"""How long a process may take to import what it needs; its own time begins after that."""


@dataclass(frozen=True)
class Limits:
    """What one piece of work may use.

    Attributes:
        seconds: Wall-clock time.
        gibibytes: Memory, beyond what an idle process has.
        threads: Threads of torch; one keeps results the same on every machine.
        gpus: That Ray reserves for it; elsewhere it sees all there are.
    """

    seconds: float = 900.0
    gibibytes: float = 10.0
    threads: int = 1
    gpus: float = 0.0


@dataclass(frozen=True)
class Job(Generic[T]):
    """What is done for each task.

    Attributes:
        work: A function at the top of a module: takes a task and gives JSON-ready data. It may tell how far it is.
        preload: A module that is imported once, by the process that all others are copies of. It starts no thread.
    """

    work: Callable[[T, Tell], Any]
    preload: str


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        data: What the work gave; None if its process ended before.
        reason: Why it ended; empty if it did not.
        late: Whether that was for the time limit.
    """

    data: Any = None
    reason: str = ""
    late: bool = False


def run_local(
    job: Job[T],
    tasks: list[T],
    jobs: int,
    limits: Limits,
    report: Callable[[T, Outcome], None],
    told: Callable[[T, Any], None] | None = None,
) -> None:
    """Run all tasks, `jobs` at a time.

    Args:
        job: What is done for each.
        tasks: The tasks, in the order in which they begin.
        jobs: How many processes at once.
        limits: Of each.
        report: Called with every task and what became of it.
        told: Called with a task and what its work tells.
    """
    waiting, running = list(reversed(tasks)), _Running(job, _context(job.preload), limits, told)
    try:
        while waiting or running.workers:
            while waiting and len(running.workers) < jobs:
                running.start(waiting.pop())
            for task, outcome in running.finished():
                report(task, outcome)
    finally:
        running.stop()


def _context(preload: str) -> Any:
    """How processes are started: copies of one that has imported everything, where that is safe."""
    if sys.platform != "linux":  # Windows can't fork; the libraries of macOS don't survive it
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context


@dataclass
class _Worker(Generic[T]):
    process: BaseProcess
    task: T
    deadline: float


@dataclass
class _Running(Generic[T]):
    """The processes at work, by the connection that their news come through."""

    job: Job[T]
    context: Any
    limits: Limits
    told: Callable[[T, Any], None] | None
    workers: dict[Connection, _Worker[T]] = field(default_factory=dict)

    def start(self, task: T) -> None:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(theirs, self.job, task, self.limits), daemon=True)
        process.start()
        theirs.close()
        self.workers[ours] = _Worker(process, task, time.monotonic() + START_SECONDS)

    def finished(self) -> Iterator[tuple[T, Outcome]]:
        """Tasks that are done, whose processes died, and that are past their time."""
        ready = wait(list(self.workers), timeout=0.2)
        for connection, worker in list(self.workers.items()):
            outcome = self._received(connection, worker) if connection in ready else None
            if outcome is None and time.monotonic() > worker.deadline:
                outcome = Outcome(reason=f"not done after {self.limits.seconds:g} s", late=True)
            if outcome is not None:
                self._end(connection)
                yield worker.task, outcome

    def _received(self, connection: Connection, worker: _Worker[T]) -> Outcome | None:
        """What a process gave, or what its death makes; None where it only said that it begins, or how far it is."""
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):  # before a message, or inside one
            worker.process.join(5)
            return Outcome(reason=f"its process ended with code {worker.process.exitcode}")
        if not message:
            worker.deadline = time.monotonic() + self.limits.seconds
            return None
        kind, data = json.loads(message)
        if kind == _DONE:
            return Outcome(data)
        if self.told is not None:
            self.told(worker.task, data)
        return None

    def _end(self, connection: Connection) -> None:
        process = self.workers.pop(connection).process
        _kill_group(process.pid)
        process.kill()
        process.join()
        connection.close()

    def stop(self) -> None:
        for connection in list(self.workers):
            self._end(connection)


_DONE, _TOLD = "done", "told"


def _work(connection: Connection, job: Job[T], task: T, limits: Limits) -> None:
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # what it starts itself ends with it
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    if hasattr(signal, "alarm"):
        signal.alarm(min(math.ceil(limits.seconds) + 60, _LONGEST))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # a model may print; stdout is for results
        os.dup2(nowhere, stream)
    connection.send_bytes(b"")
    _limit_memory(limits.gibibytes)
    torch.set_num_threads(limits.threads)

    def send(kind: str, data: Any) -> None:
        connection.send_bytes(json.dumps([kind, data]).encode())

    send(_DONE, job.work(task, lambda data: send(_TOLD, data)))
    connection.close()
    os._exit(0)  # nothing to clean up; some libraries take seconds to


_LONGEST = 2**31 - 1


def _end_with_parent(connection: Connection) -> None:
    """Wait for the other end to be closed: a parent that is killed leaves nothing at work."""
    with suppress(EOFError, OSError):
        connection.recv_bytes()
    _kill_group(os.getpid())
    os._exit(1)


def _kill_group(leader: int | None) -> None:
    if leader is None or not hasattr(os, "killpg"):
        return
    with suppress(ProcessLookupError, PermissionError):  # it leads none, or has ended
        os.killpg(leader, signal.SIGKILL)


def _limit_memory(gibibytes: float) -> None:
    """Let an allocation beyond the limit fail instead of the whole machine; where the system offers that."""
    if sys.platform != "linux":  # elsewhere the time limit is what remains
        return
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # what RLIMIT_DATA counts
    limit = used + int(gibibytes * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
