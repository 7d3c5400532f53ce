"""What an arm costs: parameters, multiply-adds, and what a training forward keeps for its backward pass."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aimgraph.bench.footprint import kept_bytes
from aimgraph.copies import copy_module
from aimgraph.inputs.batch import device_of
from aimgraph.reproducible import plain_attention, seeded
from aimgraph.user_code import told_error


@dataclass(frozen=True)
class Costs:
    """What an arm costs.

    Attributes:
        parameters: All that the module has.
        trained: Those that require gradients.
        macs: Multiply-adds of matrix products and convolutions in one example's forward, in eval mode; None where they
            can't be counted.
        kept_bytes: Bytes of tensors that are there after one batch's forward in train mode, while its output is, and
            were not before; None where they can't be measured.
        notes: Why something can't.
    """

    parameters: int
    trained: int
    macs: int | None
    kept_bytes: int | None
    notes: tuple[str, ...] = ()


def costs(module: nn.Module, x: Tensor) -> Costs:
    """Count and measure, on a copy; the module, its gradients and all random states are as before afterwards.

    Args:
        module: On its device.
        x: One training batch, [B, ...]; it is moved to the device of the module.
    """
    parameters = list(module.parameters())
    notes: list[str] = []
    moved = x.to(device_of(module))
    return Costs(
        parameters=sum(one.numel() for one in parameters),
        trained=sum(one.numel() for one in parameters if one.requires_grad),
        macs=_tried("multiply-adds", lambda: _macs(module, moved[:1]), notes),
        kept_bytes=_tried("kept bytes", lambda: _kept(module, moved), notes),
        notes=tuple(notes),
    )


def _tried(what: str, measure: Callable[[], int], notes: list[str]) -> int | None:
    try:
        with seeded():
            return measure()
    except Exception as error:  # whatever a forward raises on one example, or a profiler that another one is in the way
        notes.append(f"{what} can't be had: {told_error(error)}")
        return None


def _macs(module: nn.Module, x: Tensor) -> int:
    copied = copy_module(module).eval()
    with (
        plain_attention(),  # the products of fused attention are not counted on every device
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        copied(x)
    return int(counter.get_total_flops() // 2)


def _kept(module: nn.Module, x: Tensor) -> int:
    copied = copy_module(module).train()
    with torch.enable_grad():
        copied(x)  # what libraries take for themselves at their first call is there from now on
        return kept_bytes(lambda: copied(x), x.device)
