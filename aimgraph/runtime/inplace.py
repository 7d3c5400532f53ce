"""In-place operators as functions, so that a traced ``x += y`` stays in place.

torch.fx records ``x += y`` as ``x + y``, which loses the change for every other name of x. Its own
``operator.iadd`` is printed as a statement that also rebinds a plain number under its old name. A
function does what Python does for tensors and for numbers.
"""

import operator
from collections.abc import Callable
from typing import Any


def iadd(a: Any, b: Any) -> Any:
    """``a += b``."""
    return operator.iadd(a, b)


def isub(a: Any, b: Any) -> Any:
    """``a -= b``."""
    return operator.isub(a, b)


def imul(a: Any, b: Any) -> Any:
    """``a *= b``."""
    return operator.imul(a, b)


def itruediv(a: Any, b: Any) -> Any:
    """``a /= b``."""
    return operator.itruediv(a, b)


def ifloordiv(a: Any, b: Any) -> Any:
    """``a //= b``."""
    return operator.ifloordiv(a, b)


def imod(a: Any, b: Any) -> Any:
    """``a %= b``."""
    return operator.imod(a, b)


def ipow(a: Any, b: Any) -> Any:
    """``a **= b``."""
    return operator.ipow(a, b)


def imatmul(a: Any, b: Any) -> Any:
    """``a @= b``."""
    return operator.imatmul(a, b)


def iand(a: Any, b: Any) -> Any:
    """``a &= b``."""
    return operator.iand(a, b)


def ior(a: Any, b: Any) -> Any:
    """``a |= b``."""
    return operator.ior(a, b)


def ixor(a: Any, b: Any) -> Any:
    """``a ^= b``."""
    return operator.ixor(a, b)


INPLACE: tuple[Callable[[Any, Any], Any], ...] = (
    iadd,
    isub,
    imul,
    itruediv,
    ifloordiv,
    imod,
    ipow,
    imatmul,
    iand,
    ior,
    ixor,
)
"""Every one of them, by the name of its magic method."""
