"""Giving a model tensors of other sizes, and its layers the numbers that say so."""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.torch_private import ConvNd, NormBase


def replace_tensors(module: nn.Module, new: Mapping[int, Tensor]) -> None:
    """Put other parameters and buffers in the place of some, wherever these are registered.

    Args:
        module: The model; it is changed, and so are the numbers by which layers of torch know their sizes.
        new: The identity of a parameter or buffer -> what comes in its place.
    """
    for part in module.modules():
        before = {name: tensor.shape for name, tensor in _own(part) if tensor is not None}
        kinds: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for held in kinds:
            for name, tensor in held.items():
                if tensor is not None and id(tensor) in new:
                    held[name] = new[id(tensor)]
        after = {name: tensor.shape for name, tensor in _own(part) if tensor is not None}
        if before != after:
            _resize(part, before, after)


def _own(part: nn.Module) -> chain[tuple[str, Any]]:
    return chain(part._parameters.items(), part._buffers.items())


Shapes = dict[str, torch.Size]


def _resize(part: nn.Module, before: Shapes, after: Shapes) -> None:
    for kind in type(part).__mro__:
        if kind in _SIZES:
            _SIZES[kind](part, before, after)
            return


def _convolution(part: Any, before: Shapes, after: Shapes) -> None:
    out, into = (1, 0) if part.transposed else (0, 1)
    if "weight" not in after:  # one that is computed, which says nothing before it is
        part.out_channels = after["bias"][0]
        return
    weight, was = after["weight"], before["weight"]
    if part.groups == part.in_channels > 1 and was[into] == 1 and not part.transposed:
        part.groups = part.groups * weight[0] // was[0]
    part.out_channels = weight[out] * (part.groups if part.transposed else 1)
    part.in_channels = weight[into] * (1 if part.transposed else part.groups)


def _linear(part: Any, before: Shapes, after: Shapes) -> None:
    if "weight" in after:
        part.out_features, part.in_features = after["weight"]
    else:
        part.out_features = after["bias"][0]


def _first(name: str, *tensors: str) -> Callable[[Any, Shapes, Shapes], None]:
    """Sets an attribute to the length of the first tensor that is there."""

    def resize(part: Any, before: Shapes, after: Shapes) -> None:
        setattr(part, name, next(after[tensor][0] for tensor in tensors if tensor in after))

    return resize


def _groups(part: Any, before: Shapes, after: Shapes) -> None:
    part.num_channels = after["weight"][0]


def _layer_norm(part: Any, before: Shapes, after: Shapes) -> None:
    part.normalized_shape = tuple(after["weight"])


def _embedding(part: Any, before: Shapes, after: Shapes) -> None:
    part.num_embeddings, part.embedding_dim = after["weight"]


_NORM = ("weight", "bias", "running_mean", "running_var")
_SIZES: dict[type, Callable[[Any, Shapes, Shapes], None]] = {
    ConvNd: _convolution,
    nn.Linear: _linear,
    NormBase: _first("num_features", *_NORM),
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.GroupNorm: _groups,
    nn.PReLU: _first("num_parameters", "weight"),
    nn.Embedding: _embedding,
}
"""Class of torch -> what sets the numbers by which it knows its size."""
