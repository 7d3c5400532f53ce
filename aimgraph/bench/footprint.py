"""Memory that a piece of work takes: what is saved for the backward pass, and the most that is allocated at a time."""

import itertools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from aimgraph.emit.kept import saved_outside
from aimgraph.torch_private import storage_of


def saved_bytes(module: nn.Module, forward: Callable[[], Any]) -> int:
    """Bytes that a forward saves for the backward pass: unique storages, parameters excluded.

    What a function of your own keeps in another way than by ``save_for_backward`` is not seen; `kept_bytes` sees it.

    Args:
        module: Whose parameters don't count.
        forward: Runs it.
    """
    return saved_outside({storage_of(parameter) for parameter in module.parameters()}, forward)


def kept_bytes(forward: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors that are there after a forward, while its output is, and were not before.

    Args:
        forward: Runs once.
        device: Where its tensors are.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        output = forward()
        torch.cuda.synchronize(device)
        kept = int(torch.cuda.memory_allocated(device) - before)
        del output
        return kept
    return sum(_changes(forward))


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """The most bytes of tensors that are allocated at a time while `work` runs, beyond those that were there before.

    Args:
        work: Runs once.
        device: Where its tensors are.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    return max(itertools.accumulate(_changes(work), initial=0))


def _changes(work: Callable[[], Any]) -> list[int]:
    """Bytes of every tensor's memory that is taken, and, negative, given back on the CPU, while `work` runs."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells standard error when it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = work()
    del result
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [int(event.nbytes()) for event in sorted(events, key=lambda event: event.start_ns())]
