"""Numbers, strings and names as Python has them."""

import json
import math
from keyword import iskeyword
from typing import Any

import torch

from aimgraph.errors import PlanError

RESERVED = frozenset(
    {"F", "nn", "torch", "math", "json", "Tensor", "Any", "NamedTuple", "Self", "OrderedDict", "Path"}
    | {"load", "load_model", "safe_open", "dataclass"}
)
"""Names that a source uses itself."""

_LITERALS = (bool, complex, torch.dtype, torch.memory_format, torch.layout)


def is_name(text: str) -> bool:
    """Whether a member can be asked for by a dot and this."""
    return text.isidentifier() and not iskeyword(text)


def quoted(text: str) -> str:
    """A string in double quotes, or in single ones where that saves escapes."""
    return repr(text) if '"' in text or "\\" in text else json.dumps(text, ensure_ascii=False)


def constant(value: Any) -> str:
    """A value that is no tensor.

    Raises:
        PlanError: It can't be written.
    """
    if value is None or value is Ellipsis:
        return "None" if value is None else "..."
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, _LITERALS):
        return repr(value)
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        return constant(value.item())
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else f'float("{float(value)}")'
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    raise PlanError(f"a {type(value).__module__}.{type(value).__name__} can't be written as source: {value!r}")
