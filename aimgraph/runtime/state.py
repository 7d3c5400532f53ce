"""A memory that reaches the next batch by itself: the carried state."""

import copy
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor
from torch import distributed as dist

from aimgraph.errors import ExportError
from aimgraph.runtime.finite import Writer
from aimgraph.torch_private import active_ddp, in_backward, is_exporting, is_jit_tracing


class StateCarry(Writer):
    """``M0 = source + state``; after a training forward the state moves towards what was written.

        state <- (1 - rate) * state + rate * (mean over the batch of M_T - source)

    One module serves both ends of the graph: called with the source it gives M0, called with the
    source and the last value M_T it writes and returns nothing. It writes once per forward: not in
    the recomputation of activation checkpointing, not while exporting, and in eval mode only with
    `write_in_eval`. One that eval-mode forwards write is not exported or traced by torch at all: what comes of that
    would never write. A batch whose step is infinite or not a number writes nothing and is counted.

    Where several processes train on a part of the batch each, the states that they write are averaged, weighted by
    their samples: over `process_group` at every write, if it is set, and otherwise in train-mode forwards of a
    `DistributedDataParallel` around the model, over its group, if the gradients of that forward are averaged, too.
    A forward outside of it involves no other process.

    Args:
        size: N.
        rate: Step size, in (0, 1].
        write_in_eval: Whether eval-mode forwards write too.
        name: Of the memory.

    Attributes:
        process_group: Its processes write together, each once per forward. Copies have it, too; pickles have none.
    """

    _is_impure = True  # torch.fx: a write has no users and must survive dead-code elimination

    def __init__(self, size: int, rate: float, write_in_eval: bool, name: str = "memory") -> None:
        super().__init__(name)
        self.name = name
        self.rate = rate
        self.write_in_eval = write_in_eval
        self.process_group: dist.ProcessGroup | None = None
        self.state: Tensor
        self.register_buffer("state", torch.zeros(size))
        self._forget_reads()

    def forward(self, source: Tensor, last: Tensor | None = None, samples: int | None = None) -> Tensor | None:
        """Read or write.

        Args:
            source: [1, N].
            last: The last value, [B, N] or [1, N]; without it, this is a read.
            samples: B, where `last` is a mean over the batch.

        Returns:
            Source + state, [1, N], for a read; None for a write.

        Raises:
            ExportError: It runs to be exported or traced, and eval-mode forwards write it.
        """
        if self.write_in_eval and (is_exporting() or is_jit_tracing()):
            raise lost_write(self.name)
        if last is None:
            return self._read(source)
        if self._writes():
            self._write(source.detach(), last.detach(), samples)
        return None

    def reset(self) -> None:
        """Forget everything carried."""
        with torch.no_grad():
            self.state.zero_()
        self._forget_reads()

    def _forget_reads(self) -> None:
        self._read_state: Tensor | None = None
        self._pending: WeakSet[_Pending] = WeakSet()  # forwards whose backward pass is still to come
        self._blind = 0  # the same, where no gradient tells: reentrant checkpointing runs forwards without

    def _read(self, source: Tensor) -> Tensor:
        if _recomputing() and self._read_state is not None:
            waiting, self._blind = max(len(self._pending), self._blind), 0
            if waiting > 1:
                raise RuntimeError(
                    f"{waiting} forwards before one backward pass, under activation checkpointing: the carried state "
                    "that the first of them read is gone; call backward after each, or checkpoint smaller parts"
                )
            return source + self._read_state
        value = source + self.state
        if self._writes() and not torch.compiler.is_compiling():
            # A checkpointed forward is run again in the backward pass, after the write.
            self._read_state = self.state.clone()
            if value.requires_grad:
                pending = _Pending(self._pending)
                value.register_hook(pending.done)
            else:
                self._blind += 1
        return value

    def _writes(self) -> bool:
        if is_exporting() or is_jit_tracing() or _recomputing():
            return False
        return self.training or self.write_in_eval

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name not in ("_read_state", "_pending", "_blind")}
        return kept | {"process_group": None}  # it belongs to this process

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = memo[id(self)] = type(self).__new__(type(self))
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        made.process_group = self.process_group
        return made

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._forget_reads()

    @torch.no_grad()
    def _write(self, source: Tensor, last: Tensor, samples: int | None) -> None:
        weight: Tensor | int = last.shape[0] if samples is None else samples
        if weight > 0:  # torch 2.6 would compile `if weight` for one batch size
            exact = torch.promote_types(last.dtype, torch.float32)  # a sum may be too large for half precision
            mean = last.sum(0, dtype=exact) / last.shape[0]
            moved, finite = moved_state(self.state, mean - source[0], self.rate)
            self.state.copy_(moved)
            self.count(finite)
            weight = finite * weight
        group = self.process_group or (_wrapped_group() if self.training else None)
        if group is not None and dist.get_world_size(group) > 1:
            self._average(weight, group)

    def _average(self, samples: Tensor | int, group: dist.ProcessGroup) -> None:
        """Let every process have the mean of all states, weighted by the samples that each was moved by."""
        exact = torch.promote_types(self.state.dtype, torch.float32)
        weight = torch.zeros(1, device=self.state.device, dtype=exact) + samples
        sums = torch.cat([self.state * weight, weight])
        dist.all_reduce(sums, group=group)
        self.state.copy_(torch.where(sums[-1] > 0, sums[:-1] / sums[-1], self.state))


def moved_state(state: Tensor, step: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """The state after a write: `(1 - rate) * state + rate * step`, or as before where that is not finite.

    Args:
        state: [N].
        step: What the batch has written, over the source, [N].
        rate: Step size.

    Returns:
        The state, [N], and whether it was written.
    """
    moved = torch.lerp(state, step.to(state.dtype), rate)
    finite = moved.isfinite().all()
    return torch.where(finite, moved, state), finite


def lost_write(name: str) -> ExportError:
    """The error of exporting a memory that eval-mode forwards write as something that does not."""
    return ExportError(
        f"memory {name!r} writes its carried state in eval mode (write_in_eval=True), which would be lost: export with "
        'aimgraph.export_onnx(..., memory="state"), or transform with write_in_eval=False to export the state as it is'
    )


def _wrapped_group() -> dist.ProcessGroup | None:
    """The processes of the `DistributedDataParallel` that runs this forward and averages its gradients.

    All of them take part in such a forward, so one more thing that they do together can't make them wait for ever.
    """
    if not dist.is_available() or not dist.is_initialized():
        return None
    wrapper = active_ddp()
    if wrapper is None or not wrapper.require_backward_grad_sync:
        return None
    group: dist.ProcessGroup = wrapper.process_group
    return group


class _Pending:
    """A forward whose backward pass is still to come; gone when its graph is, or when its gradient came."""

    def __init__(self, others: "WeakSet[_Pending]") -> None:
        self.others = others
        others.add(self)

    def done(self, _: Tensor) -> None:
        """The gradient of this forward's memory has arrived."""
        self.others.discard(self)


def _recomputing() -> bool:
    """Whether this runs inside a backward pass, where only activation checkpointing runs forwards."""
    return not torch.compiler.is_compiling() and in_backward()
