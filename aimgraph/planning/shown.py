"""How plans and modules show themselves in a notebook: as a higher floor has said, and as text where nothing has."""

from collections.abc import Callable
from typing import Any

_MAKERS: list[Callable[[Any], str]] = []


def show_by(make: Callable[[Any], str]) -> None:
    """Let plans and transformed modules be shown as a fragment of HTML.

    Args:
        make: Plan or module -> HTML.
    """
    _MAKERS[:] = [make]


def shown_as_html(value: Any) -> str | None:
    """A fragment of HTML that shows a plan or a module; None, which means its text, if nothing makes one."""
    return _MAKERS[0](value) if _MAKERS else None
