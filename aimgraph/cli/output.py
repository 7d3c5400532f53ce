"""What commands print on stdout: JSON for machines, tables for people."""

import json
import os
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = 80
"""Width of what is printed where no terminal and no ``COLUMNS`` says another one."""


def console(width: int = COLUMNS, *, emoji: bool = True) -> "Console":
    """Standard output, `width` columns wide where neither a terminal nor ``COLUMNS`` sets a width."""
    from rich.console import Console

    known = Console().is_terminal or os.environ.get("COLUMNS", "").isdecimal()
    return Console(width=None if known else width, emoji=emoji)


def json_text(data: Any) -> str:
    """The JSON of a command, with paths as strings."""
    return json.dumps(data, indent=2, default=str)


def show(as_json: bool, data: Any, text: str) -> None:
    """Print `data` as JSON if asked for, `text` otherwise."""
    click.echo(json_text(data) if as_json else text)
