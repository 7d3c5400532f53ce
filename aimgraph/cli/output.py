"""What commands print on stdout: JSON for machines, tables for people."""

import json
import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = 80
"""Width of what is printed where no terminal and no ``COLUMNS`` says another one."""


def console(width: int | None = None, *, emoji: bool = True) -> "Console":
    """Standard output, as wide as the terminal.

    Args:
        width: Columns where there is no terminal, for tables that would have to break names elsewhere; by default
            those of the variable ``COLUMNS``, or 80.
        emoji: Whether names of emoji between colons are replaced.
    """
    from rich.console import Console

    given = os.environ.get("COLUMNS", "")
    elsewhere = width or (int(given) if given.isdecimal() else COLUMNS)
    return Console(width=None if Console().is_terminal else elsewhere, emoji=emoji)


def json_text(data: Any) -> str:
    """The JSON of a command, with paths as strings."""
    return json.dumps(data, indent=2, default=str)


def show(as_json: bool, data: Any, text: str) -> None:
    """Print `data` as JSON if asked for, `text` otherwise."""
    click.echo(json_text(data) if as_json else text)
