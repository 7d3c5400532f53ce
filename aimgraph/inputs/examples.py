"""Example inputs: taken as given, or inferred from the base."""

import functools
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.errors import ExampleInputError
from aimgraph.fake.tensors import fake_copy, quiet
from aimgraph.inputs.arguments import Arguments, hidden_tensors
from aimgraph.reproducible import has_numbers, is_inexact
from aimgraph.runtime.layer_kinds import is_layer, kind_of
from aimgraph.torch_private import DataDependentOutputException, FakeTensorMode, tree_map_only

SIZES: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((224,), (1024,), (16000,), (64,)),
    2: ((224, 224), (32, 32), (299, 299), (64, 64), (28, 28), (512, 512)),
    3: ((16, 112, 112), (32, 224, 224), (16, 32, 32), (8, 16, 16)),
}
"""Grids to try for a first layer of 1, 2 or 3 grid dimensions, in this order."""


def resolve_inputs(base: nn.Module, example_inputs: Any) -> Arguments:
    """Example inputs as (args, kwargs): those given, or the first inferred ones the base runs on.

    Args:
        base: The model.
        example_inputs: None; a tensor; a tuple or list of positional inputs; a dict of keyword
            inputs; or a pair of a tuple and a dict. Tensors follow the base to its device, those of the meta device as
            zeros.

    Raises:
        ExampleInputError: Nothing was given and none of the shapes tried fits.
    """
    if example_inputs is None:
        return _infer(base)
    devices = {parameter.device for parameter in base.parameters()}
    inputs = _split(example_inputs)
    if len(devices) == 1:
        inputs = tree_map_only(Tensor, functools.partial(_moved, device=devices.pop()), inputs)
    return inputs


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; zeros for one that has no values."""
    if tensor.is_meta and device.type != "meta":
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
    return tensor.to(device)


def _split(example_inputs: Any) -> Arguments:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, dict):
        return (), example_inputs
    if isinstance(example_inputs, tuple | list):
        pair = tuple(example_inputs)
        if len(pair) == 2 and isinstance(pair[0], tuple) and isinstance(pair[1], dict):
            return pair[0], pair[1]
        return pair, {}
    raise ExampleInputError(
        f"example_inputs is a {type(example_inputs).__name__}; give a tensor, a tuple of positional inputs, "
        "a dict of keyword inputs, or (args, kwargs); an object is a positional input: (data,)"
        f"{hidden_tensors(((example_inputs,), {}))}"
    )


def _infer(base: nn.Module) -> Arguments:
    tried = []
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    copy = fake_copy(base, mode).eval()
    parameters = inspect.signature(base.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(needed) <= 1:
        for sample in _candidates(base):
            shape = list(sample.shape)
            try:
                _run_fake(base, copy, sample, mode)
            except Exception as error:  # the base's own complaint about a shape; listed if all fail
                tried.append(f"  {shape}: {error}".split("\n")[0])
                continue
            warnings.warn(f"no example_inputs given: assuming one input of shape {shape}", stacklevel=4)
            return (sample,), {}
    lines = "\n".join(tried) if tried else f"  nothing: its forward needs {needed}"
    kind = type(base).__name__
    raise ExampleInputError(f"can't infer example inputs for {kind}; give example_inputs=. Tried:\n{lines}")


def _run_fake(base: nn.Module, copy: nn.Module, sample: Tensor, mode: FakeTensorMode) -> None:
    """Run a copy around fake tensors; a base that asks for values, which these don't have, runs itself."""
    try:
        with quiet(), mode, torch.no_grad():
            copy(mode.from_tensor(sample))
    except DataDependentOutputException:
        with torch.no_grad():
            copy_module(base).eval()(sample)


def _candidates(base: nn.Module) -> Iterator[Tensor]:
    first = next((m for m in base.modules() if is_layer(m)), None)
    if first is None:
        raise ExampleInputError(
            f"{type(base).__name__} has no convolution or linear layer: there is nothing that could read a memory"
        )
    shapes = []
    for name in ("pretrained_cfg", "default_cfg"):
        config = getattr(base, name, None)
        size = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
        if size:
            shapes.append((1, *size))
    channels, rank = kind_of(first).channels(first)[0], len(kind_of(first).kernel(first))
    if rank:
        shapes += [(1, channels, *grid) for grid in SIZES[rank]]
    else:
        shapes += [(1, channels), *((1, 3, *grid) for grid in SIZES[2])]
    weight = next(first.parameters())
    yield from (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for shape in shapes)


def recorded(inputs: Arguments) -> Arguments:
    """Example inputs as they are remembered: meta tensors, and the numbers of short ones that have any to tell."""
    result: Arguments = tree_map_only(Tensor, _recorded, inputs)
    return result


def without_numbers(inputs: Arguments) -> Arguments:
    """Remembered inputs without the numbers of floating-point ones of more than 64, such as images and signals."""
    result: Arguments = tree_map_only(Tensor, _without_numbers, inputs)
    return result


def _without_numbers(leaf: Tensor) -> Tensor:
    if not is_inexact(leaf) or leaf.numel() <= 64:
        return leaf
    return leaf.detach().to("meta").requires_grad_(leaf.requires_grad)


def _recorded(leaf: Tensor) -> Tensor:
    numbers = leaf.numel() <= _NUMBERS and (not is_inexact(leaf) or has_numbers(leaf)) and not leaf.is_meta
    made = leaf.detach().cpu().clone() if numbers else leaf.detach().to("meta")
    return made.requires_grad_(leaf.requires_grad)


_NUMBERS = 2**16
"""How many numbers of an example input are remembered, at most: lengths, indices, masks, codes."""
