"""An ONNX file as a model, through onnx2torch."""

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from aimgraph.errors import ExampleInputError, TraceError

NEWEST = 17
"""The opset that onnx2torch knows all common operators of; files of later ones are converted to it."""


def read_onnx(path: str | Path) -> nn.Module:
    """The network in an ONNX file: a `torch.fx.GraphModule` in eval mode, whose layers have the names of its nodes.

    Where the file has one input of fixed sizes behind the batch, the module's ``default_cfg`` tells them, as timm's
    models do, so that no example inputs need to be given.

    Raises:
        ExampleInputError: There is no such file, it is none of ONNX, or onnx2torch is not installed.
        TraceError: It has an operator that onnx2torch does not know.
    """
    if not Path(path).is_file():
        raise ExampleInputError(f"{path}: there is no such file")
    onnx, converter = _library("onnx"), _library("onnx2torch")
    try:
        file = onnx.load(str(path))
    except Exception as error:  # protobuf's own
        raise ExampleInputError(f"{path} is no ONNX file: {error}".split("\n")[0]) from error
    module = _converted(onnx, converter, file, path)
    if sizes := _sizes(file):
        vars(module)["default_cfg"] = {"input_size": sizes}
    return module.eval()


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ExampleInputError(
            f"{name} is not installed, which reads ONNX files: pip install 'aimgraph[onnx-in]'"
        ) from error


def _converted(onnx: Any, converter: Any, file: Any, path: str | Path) -> nn.Module:
    """The network as onnx2torch makes it, from operators of an earlier opset where it does not know those of the file.

    Raises:
        TraceError: It does not know these either.
    """
    try:
        module: nn.Module = converter.convert(_plain(onnx, file))
    except Exception as error:  # it raises what it meets
        try:
            older = importlib.import_module("onnx.version_converter").convert_version(file, NEWEST)
            module = converter.convert(_plain(onnx, older))
        except Exception:
            raise TraceError(
                f"{path}: onnx2torch can't read it: {type(error).__name__}: {error}. Export the network at opset "
                f"{NEWEST} or below, or transform the PyTorch model that it was made from"
            ) from error
    return module


def _plain(onnx: Any, file: Any) -> Any:
    """The file in the form that onnx2torch takes: what torch's exporters write besides is put plainly.

    A weight that several layers have is given to each of them by its own name. And reshapes to a constant shape say
    nothing of how a size of 0 is meant, where there is none.
    """
    constants = {one.name: one for one in file.graph.initializer}
    names = {name: name for name in constants}
    for node in file.graph.node:
        if node.op_type == "Constant":
            constants |= dict.fromkeys(
                node.output, next((one.t for one in node.attribute if one.name == "value"), None)
            )
        node.input[:] = [names.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.input[0] in names:
            names[node.output[0]] = node.input[0]
        shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is not None and onnx.numpy_helper.to_array(shape).all():
            kept = [one for one in node.attribute if one.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return file


def _sizes(file: Any) -> tuple[int, ...]:
    """Sizes behind the batch of the only input; empty where there are several, or a size is left open."""
    held = {one.name for one in file.graph.initializer}
    inputs = [one for one in file.graph.input if one.name not in held]
    shape = inputs[0].type.tensor_type.shape.dim if len(inputs) == 1 else ()
    sizes = tuple(int(size.dim_value) for size in shape)[1:]
    return sizes if all(sizes) else ()
