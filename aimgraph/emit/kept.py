"""What a training forward of a transformed module keeps for its backward pass, counted on tensors without values."""

from collections.abc import Callable, Collection
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from aimgraph.compiler.aim_paths import is_added
from aimgraph.emit.module import AimModule
from aimgraph.emit.record import record_of
from aimgraph.fake.leftovers import Outside
from aimgraph.fake.tensors import fake_copy, fake_inputs, quiet
from aimgraph.inputs.batch import device_of
from aimgraph.planning.kept import Kept
from aimgraph.torch_private import FakeTensorMode, storage_of, tree_leaves, tree_map
from aimgraph.user_code import told_error


def kept_by(aim: AimModule) -> Kept:
    """Count it at the example inputs, for the memory set in use.

    Args:
        aim: Any; fake copies of it run.
    """
    forms = ((False, False), (True, False), (True, True))
    with quiet(), Outside(aim).kept():
        try:
            full, frozen, lean = (_kept(aim, frozen=frozen, lean=lean) for frozen, lean in forms)
        except Exception as error:  # whatever its code says where there are no values to decide by
            return Kept(unknown=f"as its forward needs values: {told_error(error)}")
    return Kept(full, frozen, lean)


def _kept(aim: AimModule, *, frozen: bool, lean: bool) -> int:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made = fake_copy(aim, mode)
    record = record_of(made)
    record.frozen, record.lean, record.enabled = frozen, lean, True
    made.train()
    for name, parameter in made.named_parameters():
        if frozen and not is_added(name):
            parameter.requires_grad_(False)
    args, kwargs = tree_map(lambda leaf: _given(leaf, mode, device_of(aim)), record.inputs)
    given = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    there = {storage_of(tensor) for tensor in chain(made.parameters(), made.buffers(), given)}
    with mode, torch.enable_grad():
        return saved_outside(there, lambda: made(*args, **kwargs))


def saved_outside(there: Collection[int], forward: Callable[[], Any]) -> int:
    """Bytes of the memory of all tensors that a forward saves for the backward pass, each once.

    Args:
        there: The memory that does not count, as `storage_of` tells it.
        forward: Runs it; its tensors may be fake.
    """
    found: dict[int, int] = {}
    alive = []  # keeps identities from being used again

    def pack(tensor: Tensor) -> Tensor:
        if storage_of(tensor) not in there:
            found[storage_of(tensor)] = tensor.untyped_storage().nbytes()
            alive.append(tensor.detach())
        return tensor.detach()  # an output that is kept would hold itself

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(found.values())


def _given(leaf: Any, mode: FakeTensorMode, device: torch.device) -> Any:
    """An example input as a fake tensor on the device of the weights; a record has most of them on the meta device."""
    if isinstance(leaf, Tensor) and leaf.is_meta:
        with mode:
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=device)
    return fake_inputs(leaf, mode)
