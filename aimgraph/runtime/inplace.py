"""In-place operators as functions, so that a traced ``x += y`` stays in place.

torch.fx records ``x += y`` as ``x + y``, which loses the change for every other name of x. Its own
``operator.iadd`` is printed as a statement that also rebinds a plain number under its old name. A
function does what Python does for tensors and for numbers.
"""

import operator
from collections.abc import Callable
from typing import Any

NAMES = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")
"""Names of the operators: ``iadd`` is ``a += b``."""


def _function(name: str) -> Callable[[Any, Any], Any]:
    operation = getattr(operator, name)

    def apply(a: Any, b: Any) -> Any:
        return operation(a, b)

    apply.__name__ = apply.__qualname__ = name
    apply.__doc__ = operation.__doc__
    return apply


INPLACE = tuple(map(_function, NAMES))
"""One function per operator, a member of this module under its name."""

globals().update(zip(NAMES, INPLACE, strict=True))
