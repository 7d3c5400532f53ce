"""Fake tensors that stand for parameters, buffers and inputs."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.torch_private import (
    PARAMETER_MARKS,
    FakeTensor,
    FakeTensorMode,
    is_view,
    storage_of,
    tree_map,
    unset_fake_temporarily,
)

M = TypeVar("M", bound=nn.Module)


def fake_copy(module: M, mode: FakeTensorMode) -> M:
    """A copy of `module` whose parameters and buffers are fake; running it changes nothing real."""
    memo: dict[int, Any] = faked(list(chain(module.parameters(), module.buffers())), mode)
    with torch.no_grad():
        return copy_module(module, memo)


def faked(tensors: Sequence[Tensor], mode: FakeTensorMode) -> dict[int, Tensor]:
    """The identity of each tensor -> a fake one like it; what shares memory shares it still."""
    dense = {id(tensor): tensor for tensor in tensors if tensor.layout is torch.strided and type(tensor) in _OF_TORCH}
    storages = Counter(storage_of(tensor) for tensor in dense.values())
    made: dict[int, Tensor] = {}
    for tensor in tensors:
        alone = id(tensor) in dense and storages[storage_of(tensor)] == 1
        made[id(tensor)] = _fake_plain(tensor, mode) if alone and _is_plain(tensor) else mode.from_tensor(tensor)
    return made


_OF_TORCH = (Tensor, nn.Parameter)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a dense tensor is a leaf that fills its memory, and has but shape, strides, dtype and device to it."""
    return (
        tensor.is_leaf
        and not (is_view(tensor) or tensor.is_conj() or tensor.is_neg() or tensor.is_inference())
        and not (tensor.is_quantized or vars(tensor))
        and tensor.grad is None
        and not tensor.storage_offset()
        and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    )


def _fake_plain(tensor: Tensor, mode: FakeTensorMode) -> FakeTensor:
    """What ``mode.from_tensor`` gives for a plain tensor, in a fraction of its time."""
    with unset_fake_temporarily():
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        made = FakeTensor(mode, empty.requires_grad_(tensor.requires_grad), tensor.device)
    if type(tensor) is nn.Parameter:
        setattr(made, PARAMETER_MARKS[0], True)
    mode.fake_tensor_converter.set_tensor_memo(tensor, made)
    return made


def fake_inputs(inputs: Any, mode: FakeTensorMode) -> Any:
    """Every tensor in `inputs` as a fake one of the same shape, dtype and device; the fakes know their numbers."""

    def fake(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        made = mode.from_tensor(leaf)
        if not isinstance(leaf, FakeTensor):
            setattr(made, GIVEN, leaf)
        return made

    return tree_map(fake, inputs)


GIVEN = "aim_given"
"""Attribute of a fake input: the numbers that were given. A length, an index, a mask or a code can't do without."""


@contextmanager
def quiet(name: str = FakeTensor.__module__, level: int = logging.CRITICAL + 1) -> Iterator[None]:
    """Keep a logger below a level; by default, torch from logging an operation that fails on fake tensors."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
