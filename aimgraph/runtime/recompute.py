"""Activation checkpointing, whose functions run once more in the backward pass.

`torch.utils.checkpoint` in both of its variants: the one that is an autograd function, and the one that
is a generator around the call.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aimgraph.torch_private import Function, checkpoint_replaced, patched


@contextmanager
def checkpointed_as(wrap: Callable[[Function], Function], values: list[Tensor]) -> Iterator[None]:
    """Let every checkpoint that is made here run ``wrap(function)`` in the backward pass, instead of its function.

    Args:
        wrap: Makes a function of the values and the function's own arguments.
        values: Tensors that it computes with besides. The autograd function, which detaches its inputs and computes
            their gradients by itself, gets them as inputs.
    """

    def variants(apply: Function, generator: Function) -> tuple[Function, Function]:
        return (
            lambda function, preserved, *args: apply(wrap(function), preserved, *values, *args),
            lambda function, *rest, **named: generator(partial(wrap(function), *values), *rest, **named),
        )

    with checkpoint_replaced(variants):
        yield


@contextmanager
def checkpoints_entered(
    seen: Callable[[], None], region: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[None]:
    """Run what is checkpointed as if it were not.

    Args:
        seen: Called each time, and where hooks take what is saved.
        region: Made each time; what is checkpointed runs in it.
    """

    def enter(function: Function, _preserved: bool, *args: Any) -> Any:
        seen()
        with region():
            return function(*args)

    def around(*_: Any, **__: Any) -> Iterator[None]:
        seen()
        with region():
            yield

    def hooked(enter_hooks: Function) -> Function:
        def call(context: Any) -> Any:
            seen()
            return enter_hooks(context)

        return call

    hooks = torch.autograd.graph.saved_tensors_hooks
    with patched((hooks, "__enter__", hooked)), checkpoint_replaced(lambda *_: (enter, around)):
        yield
