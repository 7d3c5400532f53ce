"""What is said of a base whose forward does not run where a transform looks at it."""

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.errors import AimgraphError, ExampleInputError, TraceError
from aimgraph.fake.tensors import quiet
from aimgraph.inputs.arguments import Arguments, hidden_tensors
from aimgraph.inputs.batch import batch_size, random_inputs
from aimgraph.inputs.samples import runs
from aimgraph.torch_private import tree_leaves
from aimgraph.tracing.opaque import reason_of, wants_values
from aimgraph.tracing.shapes import shapes_of
from aimgraph.user_code import told_error, told_pre_hooks


def refusal_of(root: nn.Module, inputs: Arguments, sample: Arguments, error: Exception | None) -> AimgraphError:
    """The base's forward does not run, not even where it is given values.

    Args:
        root: The base.
        inputs: The example inputs.
        sample: Those that it was looked at with.
        error: What it raised.
    """
    name = type(root).__name__
    if wants_values(error):
        return TraceError(
            f"{name} can't be traced: {reason_of(error)}; on the meta device there are no values to decide by: "
            "transform the model on another device"
        )
    shapes = [list(shape) for shape in shapes_of(sample)]
    at = f"inputs of shapes {shapes} at batch size {batch_size(sample)} (the first dimension is taken as the batch)"
    told = f"{told_error(error)}{hidden_tensors(sample)}"
    if hooks := told_pre_hooks(root):
        return ExampleInputError(
            f"{name} does not run on {at}: {told}. Its hooks ({hooks}) may give its forward other arguments than those "
            "of a call: give the forward's own as example inputs"
        )
    if remedy := _types(root, sample):
        return ExampleInputError(f"{name} does not run on {at}: {told}. {remedy}")
    if apart := _apart(root, inputs, batch_size(sample)):
        return ExampleInputError(f"{name} runs on the example inputs, but not {apart[0]}: {told}. {apart[1]}")
    return ExampleInputError(
        f"{name} does not run on {at}: {told}. It has to run in train and in eval mode; where only a part of it takes "
        'tensors alone (the backbone of a detector), give that part the memory: within="backbone", with example inputs '
        "of its own; where it takes some batch sizes only, give two of them: example_batches=(4, 8); where the batch "
        "is another dimension than the first, transpose in a forward around it"
    )


def _types(root: nn.Module, sample: Arguments) -> str:
    """What to do about inputs of another floating-point type than all of the parameters; empty if they are of one."""
    given = {leaf.dtype for leaf in tree_leaves(sample) if isinstance(leaf, Tensor) and leaf.is_floating_point()}
    held = {parameter.dtype for parameter in root.parameters() if parameter.is_floating_point()}
    if not given or not held or given & held:
        return ""
    ours, theirs = (", ".join(sorted(str(one).removeprefix("torch.") for one in types)) for types in (given, held))
    return (
        f"The inputs are {ours} and the parameters {theirs}: give inputs of that type, or convert the model first "
        f"(model.to(torch.{ours.partition(',')[0]}))"
    )


def _apart(root: nn.Module, inputs: Arguments, batch: int) -> tuple[str, str] | None:
    """Under which conditions the base does not run, and what to do, if it runs on the example; else None."""
    tensors = [*root.parameters(), *(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))]
    if any(tensor.is_meta for tensor in tensors) or not _runs(root, inputs, grad=True):
        return None
    if not _runs(root, inputs, grad=False):
        return "without gradients recorded", "Compute what needs them in a module without conv or linear layers"
    device = tensors[0].device if tensors else torch.device("cpu")
    if not _runs(root, random_inputs(inputs, batch_size(inputs), 0, device), grad=False):
        return "on other numbers of the same kind", "Let it take any numbers, or give a part of it the memory: within="
    if not _runs(root, random_inputs(inputs, batch, 0, device), grad=False):
        return (
            f"with {batch} samples (the first dimension of its inputs is taken as the batch)",
            "Where it takes some batch sizes only, give two of them: example_batches=(4, 8). Where the batch is "
            "another dimension, transpose in a forward around it",
        )
    return None


def _runs(root: nn.Module, inputs: Arguments, *, grad: bool) -> bool:
    with quiet():
        return all(runs(copy_module(root).train(train), grad, inputs) for train in (False, True))
