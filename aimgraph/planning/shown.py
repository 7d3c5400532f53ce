"""How values show themselves in a notebook: by what a higher floor has said, and as text where nothing has."""

from collections.abc import Callable
from typing import Any

_MAKERS: dict[type, Callable[[Any], str]] = {}


def show_by(kind: type, make: Callable[[Any], str]) -> None:
    """Let values of a class, and of those derived from it, be shown as a fragment of HTML.

    Args:
        kind: The class.
        make: Value -> HTML.
    """
    _MAKERS[kind] = make


def shown_as_html(value: Any) -> str | None:
    """A fragment of HTML that shows a value; None, which notebooks take for its text, if its class has none."""
    make = next((_MAKERS[kind] for kind in type(value).__mro__ if kind in _MAKERS), None)
    return None if make is None else make(value)
