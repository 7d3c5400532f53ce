"""Runs pieces of work on Ray: on many machines, or on this one.

Every Ray task does its one piece as `run_local` does, in a process of its own within its limits, so
that what comes of it is the same wherever it is computed. A task whose worker or machine is lost is run again.
"""

import importlib
import os
import platform
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from aimgraph.errors import ConfigError
from aimgraph.units.code import code_digest
from aimgraph.units.runner import Job, Limits, Outcome, run_local

T = TypeVar("T")

LOCAL = "local"
"""The address that means: start Ray on this machine, for this run."""


RETRIES = 3
"""How often a task is tried again after its worker or machine was lost."""


def run_remote(
    job: Job[T], tasks: list[T], address: str, jobs: int, limits: Limits, report: Callable[[T, Outcome], None]
) -> None:
    """Run all tasks on Ray, as many at a time as its CPUs, and GPUs if they take any, allow.

    Args:
        job: What is done for each.
        tasks: The tasks.
        address: Of the Ray cluster, ``auto`` for the one of this machine; `LOCAL` starts one.
        jobs: How many CPUs Ray gets where it is started here.
        limits: Of each task.
        report: Called with every task and what became of it.

    Raises:
        ConfigError: There is no Ray there, or aimgraph is another one on its machines.
    """
    if not tasks:
        return
    with connected(address, jobs) as ray:
        options = {"num_cpus": limits.threads, "num_gpus": limits.gpus, "max_retries": RETRIES}
        remote = ray.remote(**options)(_one)
        waiting = {remote.remote(job, task, limits, code_digest()): task for task in tasks}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            report(waiting.pop(done), _outcome(ray, done))


def _outcome(ray: Any, reference: Any) -> Outcome:
    try:
        data = ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # not the work's: that ends in its outcome
        raise error.cause or error from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().split("\n")[0]
        return Outcome(reason=f"its worker was lost {RETRIES + 1} times: {reason}")
    if isinstance(data, str):
        raise ConfigError(f"aimgraph differs between this machine and {data}: install the same on all machines of Ray")
    return Outcome(**data)


def _one(job: Job[T], task: T, limits: Limits, digest: str) -> dict[str, Any] | str:
    """What became of one task, as data; or the name of this machine, if its aimgraph is not the caller's."""
    if code_digest() != digest:
        return platform.node()
    outcomes: list[Outcome] = []
    run_local(job, [task], 1, limits, lambda _, outcome: outcomes.append(outcome))
    return asdict(outcomes[0])


@contextmanager
def connected(address: str, jobs: int) -> Iterator[Any]:
    """Ray at an address: the one that this process is connected to already, or until the end of the block."""
    try:
        ray: Any = importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ConfigError("--ray: ray is not installed: pip install 'aimgraph[ray]'") from error
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        niceness = {"worker_niceness": 0}  # Ray's own default lets everything else on the machine go first
        options = {"num_cpus": jobs, "include_dashboard": False, "_system_config": niceness}
    started_here = not ray.is_initialized()
    try:
        _knock(address)
        if started_here:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(**options, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"--ray {address}: no Ray there: {reason}; start one with: ray start --head") from error
    try:
        yield ray
    finally:
        if started_here:
            ray.shutdown()


def _knock(address: str) -> None:
    """Ray itself tries for minutes where nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
