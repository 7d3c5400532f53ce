"""Example inputs as JSON and back."""

import math
from typing import Any

import torch
from torch import Tensor

from aimgraph.errors import CheckpointError
from aimgraph.inputs.arguments import Arguments

MOST_VALUES = 2**28
"""Values that an example input may have."""


DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
"""Name -> dtype."""


def dtype_name(tensor: Tensor) -> str:
    """``float32``, ..."""
    return str(tensor.dtype).removeprefix("torch.")


def inputs_to_json(inputs: Arguments) -> Any:
    """Example inputs as data: shapes and dtypes; numbers where they were remembered; None if a kind can't be written.

    Args:
        inputs: (args, kwargs), as `aimgraph.inputs.recorded` gives them.
    """
    try:
        return _to_json(inputs)
    except TypeError:
        return None


def _to_json(value: Any) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return {"value": value}
    if kind is float:
        return {"float": value.hex()}
    if kind in (tuple, list):
        return {kind.__name__: [_to_json(item) for item in value]}
    if kind is dict and all(type(key) is str for key in value):
        return {"dict": [[key, _to_json(item)] for key, item in value.items()]}
    if isinstance(value, Tensor) and (value.is_meta or not value.is_complex()):  # JSON has no complex numbers
        numbers = {} if value.is_meta else {"numbers": value.reshape(-1).tolist()}
        return {"tensor": {"dtype": dtype_name(value), "shape": list(value.shape)} | numbers}
    raise TypeError(f"a {kind.__name__} can't be written")


def inputs_from_json(data: Any, place: str) -> Arguments:
    """The example inputs that `inputs_to_json` wrote.

    Raises:
        CheckpointError: `data` is something else.
    """
    try:
        found = _from_json(data)
    except (TypeError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{place}: the example inputs in it are invalid: {error}") from error
    if isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], tuple) and isinstance(found[1], dict):
        return found
    raise CheckpointError(f"{place}: the example inputs in it are not (args, kwargs)")


def _from_json(data: Any) -> Any:
    if not isinstance(data, dict) or len(data) != 1:
        raise TypeError("not one kind and its content")
    ((kind, content),) = data.items()
    if kind == "value" and (content is None or isinstance(content, bool | int | str)):
        return content
    if kind == "float":
        return float.fromhex(content)
    if kind in ("tuple", "list") and isinstance(content, list):
        items = [_from_json(item) for item in content]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict" and isinstance(content, list):
        if not all(isinstance(key, str) for key, _ in content):
            raise TypeError("a keyword is no string")
        return {key: _from_json(item) for key, item in content}
    if kind == "tensor" and isinstance(content, dict) and set(content) | {"numbers"} == {"dtype", "shape", "numbers"}:
        return _tensor(**content)
    raise TypeError(f"unknown kind {kind!r:.40}")


def _tensor(dtype: Any, shape: Any, numbers: Any = None) -> Tensor:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise TypeError("a shape is no list of sizes")
    values = math.prod(max(size, 1) for size in shape)
    if values > MOST_VALUES or len(shape) > 64:
        raise ValueError(f"a tensor of {values:.3g} values is more than any example needs")
    if numbers is None:
        return torch.empty(shape, dtype=DTYPES[dtype], device="meta")
    if not isinstance(numbers, list) or len(numbers) != math.prod(shape):
        raise ValueError("there are not as many numbers as the shape says")
    return torch.tensor(numbers, dtype=DTYPES[dtype]).reshape(shape)
