"""What commands print on stdout: JSON for machines, tables for people."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def console(width: int = 140, *, emoji: bool = True) -> Console:
    """Standard output, `width` columns wide where no terminal sets a width."""
    return Console(width=None if Console().is_terminal else width, emoji=emoji)


def json_text(data: Any) -> str:
    """The JSON of a command, with paths as strings."""
    return json.dumps(data, indent=2, default=str)


def show(as_json: bool, data: Any, text: str) -> None:
    """Print `data` as JSON if asked for, `text` otherwise."""
    click.echo(json_text(data) if as_json else text)


@contextmanager
def steps(model: str) -> Iterator[Callable[[str], None]]:
    """Shows the present step and its time on stderr, where a person is watching.

    Args:
        model: What is loaded first.
    """
    errors = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(f"loading {model}", total=None)
        yield lambda text: progress.update(task, description=text)
