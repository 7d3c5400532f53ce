"""What commands print on stdout: JSON for machines, tables for people."""

import json
from typing import Any

import click
from rich.console import Console


def console(width: int = 140, *, emoji: bool = True) -> Console:
    """Standard output, `width` columns wide where no terminal sets a width."""
    return Console(width=None if Console().is_terminal else width, emoji=emoji)


def json_text(data: Any) -> str:
    """The JSON of a command, with paths as strings."""
    return json.dumps(data, indent=2, default=str)


def show(as_json: bool, data: Any, text: str) -> None:
    """Print `data` as JSON if asked for, `text` otherwise."""
    click.echo(json_text(data) if as_json else text)
