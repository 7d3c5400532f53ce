"""What each read does for some examples: the model's output with a read weight of zero, beside that with all of them.

The forwards run on a copy in eval mode, without gradients. What a forward writes into a carried state is taken back
before the next.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.checkpoint.values import state_of
from aimgraph.compiler.aim_paths import aim_path
from aimgraph.copies import copy_module
from aimgraph.distance import distance, wide
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import named_parts
from aimgraph.emit.record import record_of
from aimgraph.emit.set_names import member
from aimgraph.errors import ExampleInputError
from aimgraph.inputs.examples import resolve_inputs
from aimgraph.reproducible import is_inexact
from aimgraph.torch_private import tree_leaves
from aimgraph.web.subject import Effect, Key


def effects_of(model: nn.Module, parts: Mapping[str, AimModule], examples: Any) -> dict[str, dict[Key, Effect]]:
    """Path of a part -> what switching off each of its reads does.

    Args:
        model: The whole.
        parts: Its transformed parts.
        examples: Inputs of the model, as for `aimgraph.transform`.

    Raises:
        ExampleInputError: The model does not run on them.
    """
    made = copy_module(model).eval()
    args, kwargs = resolve_inputs(made, examples)
    copies = named_parts(made)
    buffers = {name: buffer.detach().clone() for name, buffer in made.named_buffers()}

    @torch.no_grad()
    def outputs() -> list[Tensor]:
        given = made(*args, **kwargs)
        for name, buffer in made.named_buffers():
            buffer.copy_(buffers[name])
        return [wide(leaf) for leaf in tree_leaves(given) if isinstance(leaf, Tensor) and is_inexact(leaf)]

    try:
        plain = outputs()
    except Exception as error:  # whatever the user's own forward raises
        raise ExampleInputError(f"the model fails on the examples: {type(error).__name__}: {error}") from error
    found: dict[str, dict[Key, Effect]] = {path: {} for path in parts}
    for path, part in copies.items():
        for memory, read in record_of(part).plan.reads:
            with _without(part, aim_path(memory.name, "reads", read.name)):
                found[path][memory.name, read.name] = _effect(outputs(), plain)
    return found


@contextmanager
def _without(part: AimModule, path: str) -> Iterator[None]:
    """While a read weight is zero, in split or concat form."""
    state = state_of(part)
    key = f"{member(path, part, record_of(part).chosen)}.weight"
    key = key if key in state else f"{path}.weight"
    kept = state[key].detach().clone()
    part.load_state_dict({key: torch.zeros_like(kept)}, strict=False)
    try:
        yield
    finally:
        part.load_state_dict({key: kept}, strict=False)


def _effect(given: list[Tensor], plain: list[Tensor]) -> Effect:
    largest = max((distance(one, other)[0] for one, other in zip(given, plain, strict=True)), default=0.0)
    gap = sum(float((one - other).abs().square().sum()) for one, other in zip(given, plain, strict=True))
    size = sum(float(other.abs().square().sum()) for other in plain)
    changed = None
    if plain and plain[0].dim() == 2 and plain[0].shape[1] > 1 and not plain[0].is_complex():
        changed = float((given[0].argmax(1) != plain[0].argmax(1)).double().mean())
    return Effect(largest, (gap / size) ** 0.5 if size else 0.0, changed)
