"""Runs the rows of a zoo check, each in a process of its own: one crash costs one row."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import aimgraph
from aimgraph.zoo.levels import check
from aimgraph.zoo.manifest import Entry
from aimgraph.zoo.rows import CRASHED, TIMEOUT, Row

Task = tuple[Entry, str]
Report = Callable[[Row], None]


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


def run_one(task: Task, limits: Limits) -> Row:
    """One row in this process, within its memory."""
    _limit_memory(limits.gibibytes)
    torch.set_num_threads(limits.threads)
    return check(*task)


def _limit_memory(gibibytes: float) -> None:
    """Let an allocation beyond the limit fail instead of the whole machine; where the system offers that."""
    try:
        import resource
    except ImportError:  # not on Windows; the time limit is what remains
        return
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    limit = used + int(gibibytes * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def run_local(tasks: list[Task], jobs: int, limits: Limits, report: Report) -> None:
    """Run all tasks, `jobs` at a time.

    Args:
        tasks: Models and levels.
        jobs: How many processes at once.
        limits: Of each.
        report: Called with every row as soon as it is there.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aimgraph.zoo.preload"])
    waiting, running = list(reversed(tasks)), _Running()
    try:
        while waiting or running.workers:
            while waiting and len(running.workers) < jobs:
                running.start(context, waiting.pop(), limits)
            for row in running.finished():
                report(row)
    finally:
        running.stop()


@dataclass
class _Worker:
    process: BaseProcess
    task: Task
    deadline: float
    seconds: float


@dataclass
class _Running:
    """The processes at work, by the connection that their row comes through."""

    workers: dict[Connection, _Worker] = field(default_factory=dict)

    def start(self, context: Any, task: Task, limits: Limits) -> None:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(sender, task, limits), daemon=True)
        process.start()
        sender.close()
        self.workers[receiver] = _Worker(process, task, time.monotonic() + limits.seconds, limits.seconds)

    def finished(self) -> Iterator[Row]:
        """The rows that came, of workers that died, and of those past their time."""
        ready = wait(list(self.workers), timeout=0.2)
        for connection in list(self.workers):
            worker = self.workers[connection]
            if connection in ready:
                yield self._row(connection, worker)
            elif time.monotonic() > worker.deadline:
                self._end(connection, worker)
                entry, level = worker.task
                yield Row(entry.name, level, TIMEOUT, reason=f"not done after {worker.seconds:g} s")

    def _row(self, connection: Connection, worker: _Worker) -> Row:
        entry, level = worker.task
        try:
            row: Row = Row(**json.loads(connection.recv_bytes()))
        except EOFError:
            worker.process.join(5)
            row = Row(entry.name, level, CRASHED, reason=f"its process ended with code {worker.process.exitcode}")
        self._end(connection, worker)
        return row

    def _end(self, connection: Connection, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        connection.close()
        del self.workers[connection]

    def stop(self) -> None:
        for connection, worker in list(self.workers.items()):
            self._end(connection, worker)


def _work(sender: Connection, task: Task, limits: Limits) -> None:
    row = run_one(task, limits)
    sender.send_bytes(json.dumps(asdict(row)).encode())
    sender.close()
    os._exit(0)  # nothing to clean up; some libraries take seconds to


@dataclass
class Journal:
    """Rows on disk as they come, so that an interrupted run goes on where it stopped.

    Rows of another version of aimgraph, of torch or of the entry itself are not taken.

    Args:
        path: The file; one JSON object per line.
    """

    path: Path

    def __post_init__(self) -> None:
        self.rows: dict[str, Row] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # the line that an interruption cut off
                    data = json.loads(line)
                    self.rows[data["key"]] = Row(**data["row"])

    def known(self, task: Task) -> Row | None:
        """The row of `task`, if it was run before."""
        return self.rows.get(_key(task))

    def add(self, task: Task, row: Row) -> None:
        """Keep the row of a task."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": _key(task), "row": asdict(row)}) + "\n")


def _key(task: Task) -> str:
    entry, level = task
    return "|".join((level, repr(entry), torch.__version__, aimgraph.__version__, _CODE))


def _code_digest() -> str:
    """What aimgraph's own files are: results of other code are no results."""
    digest = hashlib.sha256()
    for file in sorted(Path(aimgraph.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


_CODE = _code_digest()
