"""A batch that is not finite leaves nothing behind: what it would write for later batches is skipped, counted and said.

Half precision overflows now and then. A gradient scaler then skips its step, but running statistics and carried states
that took such a batch would hold infinities for ever. Whether it is finite is decided on the device, without waiting.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from aimgraph.torch_private import (
    FakeTensor,
    active_fake_mode,
    copy_all,
    is_batchedtensor,
    is_captured,
    is_exporting,
    is_jit_tracing,
)


@dataclass
class Report:
    """What was said of one memory.

    Attributes:
        name: Of the memory.
        told: Whether the user has been told that something was skipped.
    """

    name: str
    told: bool = False


class Writer(nn.Module):
    """A module that keeps something of the batches that it sees.

    Attributes:
        skipped: How many batches were not written because they were not finite; a buffer that is not saved.
        report: Shared by all that is written for a memory.
    """

    def __init__(self, name: str = "memory") -> None:
        super().__init__()
        self.report = Report(name)
        self.skipped: Tensor
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        before = self.skipped
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not self.skipped.is_meta:  # ``to_empty`` gives whatever was in that memory, and no state dict has the count
            self.skipped.zero_() if before.is_meta else self.skipped.copy_(before)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        given = [value for key, value in state_dict.items() if key.startswith(prefix) and isinstance(value, Tensor)]
        if self.skipped.is_meta and given and local_metadata.get("assign_to_params_buffers"):
            self.skipped = torch.zeros_like(self.skipped, device=given[0].device)  # which no state dict has

    def count(self, finite: Tensor) -> None:
        """Note whether a batch was written.

        Args:
            finite: A truth value, on the device of the count.
        """
        self.skipped.add_(~finite)
        if finite.device.type == "cpu" and not (is_captured() or active_fake_mode() or is_batchedtensor(finite)):
            self.tell()

    def tell(self) -> None:
        """Warn once for each memory, if anything was skipped; this waits for the device."""
        if self.report.told or self.skipped.is_meta or isinstance(self.skipped, FakeTensor) or not self.skipped:
            return
        self.report.told = True
        warnings.warn(
            f"memory {self.report.name!r}: a batch gave values that are infinite or not a number, as where half "
            "precision overflows; its carried state and the running statistics of its updates keep what they held. "
            "aimgraph.skipped_writes counts such batches; if there are many, check the inputs and the learning rate",
            stacklevel=2,
        )


@dataclass(frozen=True)
class Statistics:
    """Buffers of a dtype on a device.

    Attributes:
        names: Name and shape of each.
        buffers: They themselves.
        values: A copy of all that they hold, in one dimension.
    """

    names: list[tuple[str, torch.Size]]
    buffers: list[Tensor]
    values: Tensor

    def put_back(self, before: "Statistics", finite: Tensor) -> None:
        """Give the buffers the values that they had before, unless they are `finite`."""
        values = torch.where(finite.to(self.values.device), self.values, before.values)
        parts = values.split([buffer.numel() for buffer in self.buffers])
        # Through .data: the backward pass of a norm, which needs statistics of the batch only, checks that nobody has
        # written the running ones since. What is exported has none, and no .data.
        there = self.buffers if is_exporting() else [buffer.data for buffer in self.buffers]
        copy_all(there, [part.view_as(buffer) for part, buffer in zip(parts, self.buffers, strict=True)])


def statistics_of(module: Writer) -> list[Statistics]:
    """What the buffers of a module, and of all below it, hold now; of none while torch.jit.trace runs it."""
    if is_jit_tracing():  # it would take a write through .data for one into another tensor
        return []
    groups: dict[tuple[torch.dtype, torch.device], list[tuple[str, Tensor]]] = {}
    for name, buffer in module.named_buffers():
        if name != "skipped" and buffer.layout == torch.strided and not buffer.is_quantized:
            groups.setdefault((buffer.dtype, buffer.device), []).append((name, buffer))
    found = []
    for group in groups.values():
        buffers = [buffer for _, buffer in group]
        values = torch.cat([buffer.detach().reshape(-1) for buffer in buffers])
        found.append(Statistics([(name, buffer.shape) for name, buffer in group], buffers, values))
    return found


def keep_finite(module: Writer, before: list[Statistics]) -> None:
    """Put all statistics back if one of them became infinite or undefined.

    Args:
        module: Whose statistics may have been written since, or other tensors put in their places.
        before: What they were.
    """
    after = statistics_of(module) if before else []
    pairs = [(new, old) for new, old in zip(after, before, strict=False) if new.names == old.names]
    if not pairs:
        return
    finite = torch.stack([stays_finite(new.values, old.values).to(module.skipped.device) for new, old in pairs]).all()
    for new, old in pairs:
        new.put_back(old, finite)
    module.count(finite)


def stays_finite(after: Tensor, before: Tensor) -> Tensor:
    """Whether every number that was finite still is, as a truth value on the device."""
    return (after.isfinite() | ~before.isfinite()).all()
