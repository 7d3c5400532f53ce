"""A model whose own forward runs, on fake tensors where it can, with its channels followed."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.fake.tensors import fake_copy, fake_inputs, quiet
from aimgraph.inputs.arguments import Arguments, tensors_in
from aimgraph.reproducible import seeded
from aimgraph.torch_private import FakeTensorMode
from aimgraph.user_code import asking_line
from aimgraph.widen.flow import Flow, Numbering, Step
from aimgraph.widen.functions import Functions, FunctionStep
from aimgraph.widen.rewrite import replace_tensors
from aimgraph.widen.rules import rule_of
from aimgraph.widen.ties import Ties

OUTPUT = "the model gives them out"


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Name -> a parameter or buffer of a module; one that has several names stands under the first."""
    return dict(chain(module.named_parameters(), module.named_buffers()))


@dataclass(frozen=True)
class Subject:
    """A model, and what to run it on.

    Attributes:
        model: It is not changed.
        inputs: Positional and keyword inputs.
        fake: Whether its forward runs without numbers.
        modes: The modes that it runs in; ``True`` for train.
        stay: Name of a parameter or buffer -> why channels that its layers alone make don't grow.
    """

    model: nn.Module
    inputs: Arguments
    fake: bool = True
    modes: tuple[bool, ...] = (False, True)
    stay: Mapping[str, str] = field(default_factory=dict)

    def followed(
        self,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        flow_of: Callable[..., Flow] = Flow,
        functions_of: Callable[[Flow], Functions] = Functions,
    ) -> "Seen":
        """Run a copy of the model.

        Args:
            shapes: Name of a parameter or buffer -> another shape to run with.
            flow_of: Makes what follows the channels, of the tensors, the rule of each operator, and what says where
                the forward is.
            functions_of: Makes what sees the functions of torch beside it.

        Raises:
            Exception: Whatever the forward raises.
        """
        mode: AbstractContextManager[Any]
        if self.fake:
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            copy, (args, kwargs) = fake_copy(self.model, mode), fake_inputs(self.inputs, mode)
        else:
            mode, copy, (args, kwargs) = nullcontext(), copy_module(self.model), self.inputs
        _resize(copy, shapes or {}, mode)
        flow = flow_of(tensors_of(copy), rule_of, _here)
        functions = functions_of(flow)
        for train in self.modes:
            copy.train(train)
            with quiet(), seeded(), mode, flow, functions, torch.enable_grad():
                outputs = copy(*args, **kwargs)
            for leaf in tensors_in(outputs):
                for channels in flow.labels(leaf):
                    flow.ties.hold(channels.ids, OUTPUT)
        return Seen(flow.numbering, flow.ties, flow.steps, functions.steps)


@dataclass(frozen=True)
class Seen:
    """What the forward of a model has shown.

    Attributes:
        numbering: Of its channels.
        ties: What its operations say of them.
        steps: The operations, by their number.
        functions: The functions of torch that were called.
    """

    numbering: Numbering
    ties: Ties
    steps: dict[int, Step]
    functions: list[FunctionStep]


def _resize(copy: nn.Module, shapes: Mapping[str, tuple[int, ...]], mode: AbstractContextManager[Any]) -> None:
    new: dict[int, Tensor] = {}
    for name, tensor in tensors_of(copy).items():
        if shapes.get(name, tensor.shape) != tensor.shape:
            with mode:
                made: Tensor = torch.zeros(shapes[name], dtype=tensor.dtype, device=tensor.device)
            new[id(tensor)] = like(made, tensor)
    replace_tensors(copy, new)


def like(made: Tensor, tensor: Tensor) -> Tensor:
    """A tensor as a parameter, where another one is."""
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def _here() -> str:
    return f" ({asking_line()})"
