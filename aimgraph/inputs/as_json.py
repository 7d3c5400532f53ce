"""Example inputs as JSON and back."""

import base64
import binascii
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
        return {"tensor": {"dtype": dtype_name(value), "shape": list(value.shape)} | _numbers(value)}
    raise TypeError(f"a {kind.__name__} can't be written")


def _numbers(value: Tensor) -> dict[str, Any]:
    """What is known of a tensor besides its shape; floating point as bytes, little-endian, which lose nothing."""
    found: dict[str, Any] = {"requires_grad": True} if value.requires_grad else {}
    if value.is_meta:
        return found
    flat = value.detach().cpu().reshape(-1)
    if not value.is_floating_point():
        return found | {"numbers": flat.tolist()}
    raw = bytes(flat.contiguous().view(torch.uint8).tolist())
    return found | {"base64": base64.b64encode(raw).decode()}


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
    if kind == "tensor" and isinstance(content, dict) and {"dtype", "shape"} <= set(content) <= _KEYS:
        return _tensor(**content)
    raise TypeError(f"unknown kind {kind!r:.40}")


_KEYS = {"dtype", "shape", "numbers", "base64", "requires_grad"}


def _tensor(dtype: Any, shape: Any, *, requires_grad: Any = False, **known: Any) -> Tensor:
    made = _plain_tensor(dtype, shape, **known)
    return made.requires_grad_(requires_grad is True)


def _plain_tensor(dtype: Any, shape: Any, numbers: Any = None, base64: Any = None) -> Tensor:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise TypeError("a shape is no list of sizes")
    values = math.prod(max(size, 1) for size in shape)
    if values > MOST_VALUES or len(shape) > 64:
        raise ValueError(f"a tensor of {values:.3g} values is more than any example needs")
    if base64 is not None:
        raw = binascii.a2b_base64(base64, strict_mode=True)
        kind = DTYPES[dtype]
        if not kind.is_floating_point or len(raw) != math.prod(shape) * kind.itemsize:
            raise ValueError("there are not as many numbers as the shape says")
        return torch.frombuffer(bytearray(raw), dtype=kind).reshape(shape) if raw else torch.empty(shape, dtype=kind)
    if numbers is None:
        return torch.empty(shape, dtype=DTYPES[dtype], device="meta")
    if not isinstance(numbers, list) or len(numbers) != math.prod(shape):
        raise ValueError("there are not as many numbers as the shape says")
    return torch.tensor(numbers, dtype=DTYPES[dtype]).reshape(shape)
