"""The most memory that a training step takes beyond what its process holds when it is idle."""

import ctypes
import gc
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STEPS = 5
"""Of which the median counts: where an allocator puts tensors, and what it gives back, changes from step to step."""

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def step_peak(step: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes: of tensors on a GPU; on the CPU of the whole process, with what libraries take for themselves.

    The median of `STEPS` steps.

    Args:
        step: One training step. Whatever is made once, such as states of an optimiser, is there already.
        device: Where its tensors are.

    Returns:
        None where the operating system does not tell (other than Linux).
    """
    if device.type != "cuda" and not _RESET.exists():
        return None
    return round(statistics.median(_of_one(step, device) for _ in range(STEPS)))


def _of_one(step: Callable[[], Any], device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        idle = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - idle)
    ctypes.CDLL(None).malloc_trim(0)  # what the last step has given back goes back to the system
    idle = _kilobytes("VmRSS")
    _RESET.write_text("5")  # the highest mark starts from here
    step()
    return 1024 * (_kilobytes("VmHWM") - idle)


def _kilobytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])
