"""Operators that only an exporter sees: they take sizes that a graph for every size can't compare.

``y + term`` broadcasts over the batch where the term has one row, and fitting a view to a grid does nothing where it
fits. torch decides such things when a graph is exported; ONNX decides them when it runs. So the exported graph has one
operator for either, without a decision, and the file has ``Add`` and ``Resize``.
"""

import torch
from torch import Tensor

from aimgraph.runtime.reads.view import fit


@torch.library.custom_op("aimgraph::add_term", mutates_args=())
def add_term(output: Tensor, term: Tensor) -> Tensor:
    """A layer's output, [B, ...], plus what it reads, [B, ...] or [1, ...]."""
    return output + term.to(output.dtype)


@add_term.register_fake
def _(output: Tensor, term: Tensor) -> Tensor:
    return torch.empty_like(output)


@torch.library.custom_op("aimgraph::fit_to", mutates_args=())
def fit_to(view: Tensor, like: Tensor, channel_axis: int, batch_axis: int | None, site: str) -> Tensor:
    """`view` on the grid of `like`; see `aimgraph.runtime.reads.view.fit`."""
    return fit(view, like, channel_axis, batch_axis, site).clone()


@fit_to.register_fake
def _(view: Tensor, like: Tensor, channel_axis: int, batch_axis: int | None, site: str) -> Tensor:
    if view.dim() != like.dim():
        raise ValueError(f"{site} reads in {view.dim()} dimensions what its input has in {like.dim()}")
    own = (channel_axis, batch_axis)
    sizes = [view.shape[axis] if axis in own else like.shape[axis] for axis in range(like.dim())]
    return like.new_empty(sizes)


ADD_TERM, FIT_TO = torch.ops.aimgraph.add_term.default, torch.ops.aimgraph.fit_to.default
"""The two as targets of nodes."""
