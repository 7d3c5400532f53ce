"""Operations that are given without torch's own composition of them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from aimgraph.fake.operations import Recorder

CHANNELS = 4


def given(*, like: Tensor, train: bool, affine: bool, tracked: bool, watched: bool) -> Any:
    """What batch normalisation of a fake tensor gives, and how often its statistics were overwritten."""
    mode = FakeTensorMode()
    x, *held = (mode.from_tensor(one) for one in (like, *torch.ones(4, CHANNELS, dtype=like.dtype)))
    weight, bias = held[:2] if affine else (None, None)
    statistics = held[2:] if tracked else []
    before = [one._version for one in statistics]
    recorder = Recorder([], [x] if watched else [])
    with torch.no_grad(), mode:
        args = (x, weight, bias, *(statistics or (None, None)), train, 0.1, 1e-5)
        if watched:
            with recorder:
                made = torch.ops.aten.native_batch_norm.default(*args)
        else:
            made = torch.ops.aten.native_batch_norm.default(*args)
    seen = [(tuple(one.shape), one.stride(), one.dtype, one.device) for one in made]
    return seen, [one._version > version for one, version in zip(statistics, before, strict=True)]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(
    "like",
    [
        torch.zeros(3, CHANNELS),
        torch.zeros(3, CHANNELS, 5),
        torch.zeros(3, CHANNELS, 5, 6),
        torch.zeros(3, CHANNELS, 5, 6).to(memory_format=torch.channels_last),
        torch.zeros(3, CHANNELS, 1, 1).to(memory_format=torch.channels_last),
        torch.zeros(3, CHANNELS, 5, 6).transpose(2, 3),
        torch.zeros(3, CHANNELS, 5, 6)[:, :, ::2],
        torch.zeros(3, CHANNELS, 2, 5, 6, dtype=torch.float64),
        torch.zeros(3, CHANNELS, 5, 6, dtype=torch.bfloat16),
    ],
    ids=lambda like: f"{like.dtype}-{tuple(like.shape)}-{like.stride()}",
)
def test_batch_normalisation_is_what_torch_says(like: Tensor, train: bool, affine: bool) -> None:
    for tracked in (False, True) if train else (True,):
        case = {"like": like, "train": train, "affine": affine, "tracked": tracked}
        assert given(**case, watched=True) == given(**case, watched=False)


def test_batch_normalisation_that_does_not_fit_is_refused_as_torch_does() -> None:
    mode = FakeTensorMode()
    x, wrong = mode.from_tensor(torch.zeros(2, 3, 4)), mode.from_tensor(torch.zeros(5))
    with torch.no_grad(), mode, Recorder([], [x]), pytest.raises(RuntimeError):
        torch.batch_norm(x, wrong, wrong, wrong, wrong, False, 0.1, 1e-5, False)
