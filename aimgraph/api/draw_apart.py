"""Random numbers of single modules, drawn apart from those around their calls."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.reproducible import own_stream
from aimgraph.torch_private import unset_fake_temporarily


def draw_apart(modules: Iterable[tuple[str, nn.Module]]) -> set[str]:
    """Let each module draw from a stream of its own, the same at every call, on the CPU.

    What is drawn around its calls is then what it is without them.

    Args:
        modules: (name, module) pairs; hooks are put on each.

    Returns:
        The names of those that have drawn any, as they come.
    """
    drawing: set[str] = set()
    calls: list[tuple[ExitStack, Tensor]] = []

    def hook(name: str, module: nn.Module) -> None:
        def before(*_: Any) -> None:
            with unset_fake_temporarily():  # a fake state of the generator has no numbers
                stream = ExitStack()
                stream.enter_context(own_stream(name))
                calls.append((stream, torch.get_rng_state()))

        def after(*_: Any) -> None:
            stream, start = calls.pop()
            with unset_fake_temporarily(), stream:
                if not torch.equal(torch.get_rng_state(), start):
                    drawing.add(name)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after, always_call=True)

    for name, module in modules:
        hook(name, module)
    return drawing
