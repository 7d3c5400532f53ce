"""Does a graph do what the forward does? Operation by operation, on fake tensors.

A forward may decide something that a stand-in answers wrongly and silently: the type of an input,
whether a dictionary has a key. The operations that really reach the tensors tell.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aimgraph.calls import CallNames, Calls, WatchCalls, plain_attention
from aimgraph.errors import TraceError
from aimgraph.fakes import FakeRun, fake_copy, fake_inputs, quiet
from aimgraph.layers import LayerKind
from aimgraph.tracing import Arguments, bound_arguments, kept_randomness

Operation = tuple[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Observed:
    """What one forward of the untouched base does.

    Attributes:
        operations: On inputs, parameters, buffers and what comes from them, in order.
        calls: Of convolution and linear functions.
        error: Why the forward does not run on fake tensors, if it doesn't; there is nothing else then.
    """

    operations: list[Operation]
    calls: Calls
    error: Exception | None = None


def observe(root: nn.Module, kinds: dict[nn.Module, LayerKind], inputs: Arguments) -> dict[str, Observed]:
    """Watch a forward of `root` in train and in eval mode, on fake tensors.

    Args:
        root: The module; copies of it run.
        kinds: The kind of each of its convolutions and linear layers.
        inputs: Example inputs.
    """
    return {mode: _observe_once(root, kinds, mode, inputs) for mode in ("train", "eval")}


def _observe_once(root: nn.Module, kinds: dict[nn.Module, LayerKind], mode: str, inputs: Arguments) -> Observed:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    copy = fake_copy(root, fake).train(mode == "train")
    paths = dict(root.named_modules())
    ours = {module: kinds[paths[path]] for path, module in copy.named_modules() if paths[path] in kinds}
    args, kwargs = fake_inputs(inputs, fake)
    watch, recorder = WatchCalls(CallNames(copy, ours)), _Recorder(copy, (args, kwargs))
    try:
        with kept_randomness(), quiet(), plain_attention(), fake, torch.no_grad(), watch, recorder:
            copy.forward(*args, **kwargs)
    except Exception as error:  # any code may stand in a forward; told where the answer is needed
        return Observed([], Calls(), error)
    return Observed(recorder.operations, watch.calls)


def check_faithful(
    root: nn.Module, graphs: dict[str, fx.Graph], inputs: Arguments, observed: dict[str, Observed]
) -> None:
    """Compare each graph with what the forward of `root` did, in train and in eval mode.

    Args:
        root: The module that was traced; copies of it run.
        graphs: ``both``, or ``train`` and ``eval``.
        inputs: The inputs that it was observed with.
        observed: Mode -> what the forward did.

    Raises:
        TraceError: They apply different operations to the inputs, parameters and buffers.
    """
    for mode in ("train", "eval"):
        graph = graphs.get(mode, graphs.get("both"))
        assert graph is not None
        if (error := observed[mode].error) is not None:
            raise TraceError(
                f"the {mode} forward of {type(root).__name__} does not run on fake tensors, so its graph can't be "
                f"compared with it: {error}"
            ) from error
        forward = observed[mode].operations
        traced = _graph_operations(root, graph, mode, inputs)
        for number, (one, other) in enumerate(itertools.zip_longest(forward, traced)):
            if one != other:
                raise TraceError(
                    f"the {mode} graph of {type(root).__name__} does not do what its forward does: operation {number} "
                    f"is {_name(one)} in the forward and {_name(other)} in the graph. A branch on the type or the "
                    "content of an input (isinstance, dict.get) is decided on a stand-in while tracing: take it "
                    "out of the forward, or move it into a submodule without conv or linear layers"
                )


def _graph_operations(root: nn.Module, graph: fx.Graph, mode: str, inputs: Arguments) -> list[Operation]:
    run = FakeRun(root, bound_arguments(root, inputs))
    run.adopt(fake_copy(root, run.mode).train(mode == "train"))
    with quiet(), torch.no_grad(), _Recorder(run.root, run.inputs) as recorder:
        run.run(graph)
    operations: list[Operation] = recorder.operations
    return operations


class _Recorder(TorchDispatchMode):
    """Lists the operations on anything that comes from inputs, parameters or buffers.

    What a forward does to constants alone is done once, while tracing, and stands in no graph.
    """

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        self.alive = [
            *module.parameters(),
            *module.buffers(),
            *(t for t in tree_leaves(inputs) if isinstance(t, Tensor)),
        ]
        self.known = {id(tensor) for tensor in self.alive}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(id(leaf) in self.known for leaf in tree_leaves((args, kwargs))):
            made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.operations.append((str(func), tuple(tuple(tensor.shape) for tensor in made)))
            self.alive += made
            self.known.update(map(id, made))
        return result


def _name(operation: Operation | None) -> str:
    if operation is None:
        return "missing"
    return f"{operation[0]} -> {', '.join(str(list(shape)) for shape in operation[1])}"
