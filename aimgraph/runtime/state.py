"""A memory that reaches the next batch by itself: the carried state."""

import torch
from torch import Tensor, nn
from torch import distributed as dist


class StateCarry(nn.Module):
    """M0 = source + state; after a training forward the state moves towards what was written.

        state <- (1 - rate) * state + rate * (mean over the batch of M_T - source)

    One module serves both ends of the graph: called with the source it gives M0, called with the
    source and the last value M_T it writes and returns nothing. It writes once per forward: not in
    the recomputation of activation checkpointing, not while exporting, and in eval mode only with
    `write_in_eval`.

    Args:
        size: N.
        rate: Step size, in (0, 1].
        write_in_eval: Whether eval-mode forwards write too.
    """

    _is_impure = True  # torch.fx: a write has no users and must survive dead-code elimination

    def __init__(self, size: int, rate: float, write_in_eval: bool) -> None:
        super().__init__()
        self.rate = rate
        self.write_in_eval = write_in_eval
        self.process_group: dist.ProcessGroup | None = None
        self.state: Tensor
        self.register_buffer("state", torch.zeros(size))
        self._read_state: Tensor | None = None
        self._checkpointed = 0

    def forward(self, source: Tensor, last: Tensor | None = None) -> Tensor | None:
        """Read ([1, N] -> [1, N]) or, given the last value [B, N], write."""
        if last is None:
            return self._read(source)
        if self._writes():
            self._write(source.detach(), last.detach())
        return None

    def reset(self) -> None:
        """Forget everything carried."""
        with torch.no_grad():
            self.state.zero_()
        self._read_state = None
        self._checkpointed = 0

    def _read(self, source: Tensor) -> Tensor:
        if _recomputing() and self._read_state is not None:
            if self._checkpointed > 1:
                raise RuntimeError(
                    f"{self._checkpointed} forwards under activation checkpointing before one backward pass: the state "
                    "that the first of them read is gone; call backward after each, or checkpoint smaller parts"
                )
            self._checkpointed = 0
            return source + self._read_state
        if self._writes() and not torch.compiler.is_compiling():
            # A checkpointed forward is run again in the backward pass, after the write.
            self._read_state = self.state.clone()
            self._checkpointed += _checkpointing()
        return source + self.state

    def _writes(self) -> bool:
        if torch.compiler.is_exporting() or torch.jit._trace.is_tracing() or _recomputing():
            return False
        return self.training or self.write_in_eval

    @torch.no_grad()
    def _write(self, source: Tensor, last: Tensor) -> None:
        mean = last.mean(0)
        if self.process_group is not None:
            sums = torch.cat([last.sum(0).float(), torch.full((1,), last.shape[0], device=last.device)])
            dist.all_reduce(sums, group=self.process_group)
            mean = sums[:-1] / sums[-1]
        self.state.lerp_((mean - source[0]).to(self.state.dtype), self.rate)


def _recomputing() -> bool:
    """Whether this runs inside a backward pass, where only activation checkpointing runs forwards."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._current_graph_task_id() != -1)


def _checkpointing() -> bool:
    """Whether this forward will run again: non-reentrant checkpointing replaces saved tensors by hooks."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
