"""State dicts by torch's own names, whatever the class of a model makes of its own."""

from typing import Any

from torch import Tensor, nn

from aimgraph.emit.parts import tensors_named
from aimgraph.errors import CheckpointError
from aimgraph.user_code import place_of


def plain_state(module: nn.Module) -> dict[str, Any]:
    """What `torch.nn.Module.state_dict` gives, as it is of a transformed module: names are paths in the model.

    Raises:
        CheckpointError: The ``state_dict`` of a module below, or a hook of one, fails.
    """
    try:
        return nn.Module.state_dict(module)
    except Exception as error:  # whatever the code of a user's class raises
        told = f"{type(error).__name__}{place_of(error)}: {error}"
        raise CheckpointError(
            f"the state dict of {type(module).__name__} can't be had: {told}; "
            "let that method give what torch's does, or keep the parameters and buffers by your own means"
        ) from error


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module by their names, and by the keys of its state dict where that can be had.

    Read weights in concat form, which are part of another tensor, have such keys.
    """
    held = dict(tensors_named(module, every_name=True))
    try:
        state = plain_state(module)
    except CheckpointError:
        return held
    return held | {key: value for key, value in state.items() if isinstance(value, Tensor)}


def own_state_dict(module: nn.Module) -> str:
    """How messages name the method by which a class makes other state dicts than torch, or reads them; often empty."""
    kind = type(module)
    for name in ("state_dict", "load_state_dict"):
        if getattr(kind, name) is not getattr(nn.Module, name):
            return f"{kind.__name__}.{name}"
    return ""
