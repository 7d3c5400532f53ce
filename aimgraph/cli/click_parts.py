"""What the command line adds to click: commands that are imported when they are called, and close names."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class CloseGroup(click.Group):
    """A group that names what is close to a mistyped command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called; a name that is none is refused with those close to it."""
        name, names = args[0], self.list_commands(ctx)
        if name not in names and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command {name!r}.{close_to(name, names)}")
        return super().resolve_command(ctx, args)


class LazyGroup(CloseGroup):
    """A group whose commands are imported when they are called, or asked for their own help.

    Args:
        *args: As for `click.Group`.
        places: Name of a command -> ``module:attribute``, and what the list of commands says of it.
        **settings: As for `click.Group`.
    """

    def __init__(self, *args: Any, places: Mapping[str, tuple[str, str]], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.places = dict(places)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of their places."""
        return list(self.places)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, imported now; None if there is none."""
        if cmd_name not in self.places:
            return None
        module, _, attribute = self.places[cmd_name][0].partition(":")
        found: click.Command = getattr(import_module(module), attribute)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in self.places.items()])


class Names(click.Choice):  # type: ignore[type-arg]  # click before 8.4 has no argument for it
    """A choice that names what is close to a mistyped value."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value, if it is one of the names."""
        if value not in self.choices:
            listed = ", ".join(map(repr, self.choices))
            self.fail(f"{value!r} is not one of {listed}.{close_to(str(value), self.choices)}", param, ctx)
        return value


def close_to(name: str, names: Iterable[str]) -> str:
    """A question whether a name close to `name` is meant, with a space before it; empty if none is close."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def replaced(option: str, by: str, *names: str, **settings: Any) -> Callable[[F], F]:
    """An option that says what another one says: it is taken, with a line on stderr, and stands in no help.

    Args:
        option: Its name.
        by: What to give instead.
        *names: Of its parameter.
        **settings: As for `click.option`.
    """

    def told(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        if value:
            click.echo(f"aimgraph: {option}: give {by} instead", err=True)
        return value

    return click.option(option, *names, hidden=True, callback=told, help=f"Give {by} instead.", **settings)
