"""Adding a term to a layer's output, in place where nobody can tell."""

import torch
from torch import Tensor

from aimgraph.errors import PlanError
from aimgraph.runtime.lean.step import Lean
from aimgraph.torch_private import FRESH_NODES, is_batchedtensor, is_captured, is_view


def accumulate(output: Tensor, term: Tensor) -> Tensor:
    """``output + term``, in place where that is legal: it keeps the memory layout, and so bit identity.

    A convolution or linear layer saves its input for the backward pass, not its output, so its
    fresh output may be overwritten. A view (the output under full backward hooks) may not, nor may
    what a forward hook made of the output, nor an output that is not batched under `torch.vmap`
    while the term is, nor one of `torch.inference_mode` outside of it.
    """
    if is_captured():
        return torch.add(output, term.to(output.dtype))
    if not _may_overwrite(output, term):
        _check_width(output, term)
        return torch.add(output, term.to(output.dtype))
    return output.add_(_laid_out(term, output))


_FRESH = FRESH_NODES | {f"{Lean.__name__}Backward"}
"""Backward nodes of what does not keep its output."""

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _laid_out(term: Tensor, output: Tensor) -> Tensor:
    """`term` with its channels side by side in memory if those of `output` are, or else not.

    Most layers see to that. What they lay out in another way is copied, one sample of it: to add it as it is to many
    samples takes several times as long.
    """
    if term.dim() != output.dim() or term.dim() not in _CHANNELS_LAST or 1 in term.shape[1:]:
        return term
    last = output.stride(1) == 1
    if (term.stride(1) == 1) == last:
        return term
    return term.contiguous(memory_format=_CHANNELS_LAST[term.dim()] if last else torch.contiguous_format)


def _may_overwrite(output: Tensor, term: Tensor) -> bool:
    if output.grad_fn is not None and output.grad_fn.name() not in _FRESH:
        return False
    if is_batchedtensor(term) and not is_batchedtensor(output):
        return False
    if output.is_inference() and not torch.is_inference_mode_enabled():
        return False
    return not is_view(output) and _fits_into(term.shape, output.shape)


def _check_width(output: Tensor, term: Tensor) -> None:
    """A layer that gives one channel, or one place, where its read gives more would be broadcast to these."""
    if any(one == 1 != other for one, other in zip(output.shape[1:], term.shape[1:], strict=False)):
        raise PlanError(
            f"a layer gives {list(output.shape)} where what it reads is {list(term.shape)}: if it was changed after "
            "the transform, call aim = aimgraph.refit(aim)"
        )


def _fits_into(term: torch.Size, output: torch.Size) -> bool:
    """Whether a term broadcasts to an output; torch.broadcast_shapes takes longer than the sum."""
    if len(term) > len(output):
        return False
    return all(one in (1, other) for one, other in zip(reversed(term), reversed(output), strict=False))
