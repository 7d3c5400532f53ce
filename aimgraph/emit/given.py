"""What the base held when it was transformed, in a few values of every tensor: whether it was trained since."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aimgraph.compiler.aim_paths import is_added
from aimgraph.emit.plain_state import plain_state
from aimgraph.emit.record import record_of

SAMPLED = 64
"""Values of a tensor that are remembered, evenly spread."""


def samples_of(aim: nn.Module) -> dict[str, Tensor]:
    """Key of a parameter of the base -> some of its values."""
    base = [(name, one) for name, one in aim.named_parameters() if not is_added(name)]
    if record_of(aim).concat_sites:  # a state dict tells their own weights from those of reads
        state = plain_state(aim)
        base = [(name, state[name]) for name, _ in base]
    return {name: _sample(one) for name, one in base if _can_be_read(one)}


def is_changed(tensor: Tensor, sample: Tensor) -> bool:
    """Whether a tensor holds other values than those that were remembered, in its present dtype."""
    if not _can_be_read(tensor):
        return False
    now = _sample(tensor)
    return not torch.equal(now.cpu().nan_to_num(), sample.to(now.dtype).cpu().nan_to_num())


def trained(aim: nn.Module, given: Mapping[str, Tensor]) -> list[str]:
    """Parameters of the base that require gradients and hold other values than when it was transformed.

    Args:
        aim: The model.
        given: Key in its state dict -> what `samples_of` remembered. Of the other parameters, those that have a
            gradient count as trained.
    """
    wanted = {name: one for name, one in aim.named_parameters() if one.requires_grad}
    state = plain_state(aim)
    return [
        name
        for name, parameter in wanted.items()
        if (is_changed(state[name], given[name]) if name in given else parameter.grad is not None)
    ]


def _can_be_read(tensor: Tensor) -> bool:
    return not tensor.is_meta and tensor.layout == torch.strided and not tensor.is_quantized


def _sample(tensor: Tensor) -> Tensor:
    flat = tensor.detach() if tensor.is_contiguous() else tensor.detach().reshape(-1)
    step = max(1, -(-flat.numel() // SAMPLED))
    return flat.as_strided((-(-flat.numel() // step),), (step,)).clone()
