"""What must not change while a program is compiled: how the base is called and what it holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from aimgraph.compiler.aim_paths import is_added


@dataclass(frozen=True)
class Classified:
    """Whether a layer can read a memory, and how: what classifying it gave.

    Attributes:
        name: Name of the class, e.g. ``Conv2d``.
        affine: Whether it can read a memory.
        raw: Whether it transforms its weight (or input) before use, so that Wm can't go the same
            way: Wm is then used as it is, and only the split form is possible.
        enter: Whether tracing enters it instead of recording one call.
        reason: Why it is not affine; empty otherwise.
    """

    name: str
    affine: bool
    raw: bool = False
    enter: bool = False
    reason: str = ""


def layer_paths(root: nn.Module, kinds: Mapping[nn.Module, Classified]) -> frozenset[str]:
    """Paths of the convolutions and linear layers of `root` whose calls count as theirs: those that are not entered."""
    return frozenset(path for path, part in root.named_modules() if part in kinds and not kinds[part].enter)


@dataclass(frozen=True)
class FunctionCall:
    """One call of a convolution or linear function.

    Attributes:
        function: Its name in `torch.nn.functional`.
        input: Shape of the features; of a layer's call, what the layer was given.
        weight: Shape of the weight.
        parameter: Name of the parameter that the weight is; empty if it is computed.
        groups: g; 1 for a linear function.
        dtype: Of the weight.
        device: Of the weight.
        opaque: The module that is kept as one call in which it is made, and the number of that module's call.
        hidden: The `torch.autograd.Function` in whose forward it is made; empty if there is none.
        output: Shape of what it gives.
    """

    function: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    parameter: str
    groups: int
    dtype: torch.dtype
    device: torch.device
    opaque: tuple[str, int] | None
    hidden: str
    output: tuple[int, ...]


@dataclass
class Calls:
    """The calls that one forward makes.

    Attributes:
        made: Name of a call -> the call, each time.
        callers: Modules that call such a function themselves.
        failed: The innermost module that raised an error, if one did.
    """

    made: dict[str, list[FunctionCall]] = field(default_factory=dict)
    callers: set[str] = field(default_factory=set)
    failed: str | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Name of a call -> how often it is made."""
        return {name: len(calls) for name, calls in self.made.items()}


@dataclass(frozen=True)
class Opaque:
    """A module that is kept as one call.

    Attributes:
        path: Its path; "" for the base itself.
        reason: Why it can't be traced.
        needs_values: Whether its forward depends on values, so that shapes alone can't run it.
    """

    path: str
    reason: str
    needs_values: bool


@dataclass(frozen=True)
class Signature:
    """What must not change: how the base is called and what it holds.

    Attributes:
        model: Class name of the base.
        placeholders: Graph -> names of its inputs.
        parameters: Names of the base's parameters and buffers.
        inputs: Shapes of the example inputs' tensors.
        batch: Example batch size.
        second: The other batch size that shapes were derived at.
        grad: Whether the base's forward differentiates, and runs with gradients recorded only.
        moded: Paths of modules whose own train or eval mode decides between the graphs.
        example: The example inputs, (args, kwargs), at a batch size that no other dimension shares.
        calls: Mode -> the convolution and linear functions that the base's own forward calls.
        again: The same at the next batch size; only where there are opaque modules.
        opaque: Modules that can't be traced and are kept as one call.
        untrained: Names of calls of layers and functions that no gradient comes back to, in either mode.
    """

    model: str
    placeholders: dict[str, tuple[str, ...]]
    parameters: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    batch: int
    moded: tuple[str, ...]
    example: tuple[tuple[Any, ...], dict[str, Any]]
    calls: dict[str, Calls] = field(default_factory=dict)
    again: dict[str, Calls] = field(default_factory=dict)
    opaque: dict[str, "Opaque"] = field(default_factory=dict)
    second: int = 0
    grad: bool = False
    untrained: frozenset[str] = frozenset()


def base_names(root: nn.Module) -> tuple[str, ...]:
    """Names of the parameters and buffers of the base in `root`, shared ones under each of their names."""
    parameters, buffers = list[str](), list[str]()
    for path, module in root.named_modules(remove_duplicate=False):
        if not is_added(f"{path}."):
            start = path and f"{path}."
            parameters += [start + name for name, tensor in module._parameters.items() if tensor is not None]
            buffers += [start + name for name, tensor in module._buffers.items() if tensor is not None]
    return (*parameters, *buffers)


def graph_inputs(graph: fx.Graph) -> tuple[str, ...]:
    """Names of a graph's inputs, in order."""
    return tuple(str(node.target) for node in graph.find_nodes(op="placeholder"))
