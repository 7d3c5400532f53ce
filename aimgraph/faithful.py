"""Does a graph do what the forward does? Operation by operation, on fake tensors.

A forward may decide something that a stand-in answers wrongly and silently: the type of an input,
whether a dictionary has a key. The operations that really reach the tensors tell.
"""

import itertools
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aimgraph.errors import TraceError
from aimgraph.fakes import FakeRun, fake_copy, fake_inputs, quiet
from aimgraph.tracing import Arguments, bound_arguments

Operation = tuple[str, tuple[tuple[int, ...], ...]]


def check_faithful(root: nn.Module, graphs: dict[str, fx.Graph], inputs: Arguments) -> None:
    """Compare each graph with the forward of `root`, in train and in eval mode.

    Args:
        root: The module that was traced; copies of it run.
        graphs: ``both``, or ``train`` and ``eval``.
        inputs: Example inputs.

    Raises:
        TraceError: They apply different operations to the inputs, parameters and buffers.
    """
    for mode in ("train", "eval"):
        graph = graphs.get(mode, graphs.get("both"))
        assert graph is not None
        forward = _forward_operations(root, mode, inputs)
        traced = _graph_operations(root, graph, mode, inputs)
        for number, (one, other) in enumerate(itertools.zip_longest(forward, traced)):
            if one != other:
                raise TraceError(
                    f"the {mode} graph of {type(root).__name__} does not do what its forward does: operation {number} "
                    f"is {_name(one)} in the forward and {_name(other)} in the graph. A branch on the type or the "
                    "content of an input (isinstance, dict.get) is decided on a stand-in while tracing: take it "
                    "out of the forward, or move it into a submodule without conv or linear layers"
                )


def _forward_operations(root: nn.Module, mode: str, inputs: Arguments) -> list[Operation]:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    copy = fake_copy(root, fake).train(mode == "train")
    args, kwargs = fake_inputs(inputs, fake)
    with quiet(), fake, torch.no_grad(), _Recorder(copy, (args, kwargs)) as recorder:
        copy.forward(*args, **kwargs)
    operations: list[Operation] = recorder.operations
    return operations


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
