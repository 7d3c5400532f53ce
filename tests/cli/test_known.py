"""What help texts show without an import is what the modules define."""

import typing
from importlib import import_module
from types import FunctionType, ModuleType
from typing import Any

import click
import pytest

from aimgraph.cli import known
from aimgraph.cli.known import Known
from tests.cli.test_help import commands

KNOWN = {name: value for name, value in vars(known).items() if isinstance(value, Known)}


def defined(place: str) -> Any:
    """What stands at ``module:a.b``: an attribute, an entry of a dict or the annotation of an option."""
    module, _, path = place.partition(":")
    value: Any = import_module(module)
    for name in path.split(".") if path else ():
        if isinstance(value, dict):
            value = value[name]
        elif name in getattr(value, "model_fields", {}):
            value = value.model_fields[name].annotation
        else:
            value = getattr(value, name)
    return value


def names_of(value: Any) -> Any:
    """The names of a module's functions, of a dict, or of a `Literal`, which may be one of several types."""
    if isinstance(value, ModuleType):
        return tuple(
            name for name, item in vars(value).items() if isinstance(item, FunctionType) and not name.startswith("_")
        )
    if isinstance(value, dict | frozenset):
        return tuple(value)
    found = typing.get_args(value)
    return tuple(item for item in found if isinstance(item, str)) or tuple(
        name for item in found for name in typing.get_args(item)
    )


@pytest.mark.parametrize("name", list(KNOWN))
def test_what_is_known_is_what_is_defined(name: str) -> None:
    here, there = KNOWN[name].value, defined(KNOWN[name].place)
    if isinstance(here, float) or isinstance(there, tuple):
        assert here == there
    else:
        assert set(here) | set(KNOWN[name].without) == set(names_of(there))
        assert not set(here) & set(KNOWN[name].without)


def test_defaults_in_help_texts_are_those_of_a_memory() -> None:
    fields = defined("aimgraph.config:AimConfig").model_fields
    (plan,) = (command for path, command in commands() if path == ("plan",))
    seen = set()
    for option in plan.params:
        told = (getattr(option, "help", None) or "").partition("[default: ")[2].rstrip("]")
        if told:
            assert told == str(fields[option.name].default), option.name
            seen.add(option.name)
    assert seen >= {"budget", "source", "read", "block", "mode", "carry", "rate", "start", "lowering", "seed", "name"}


def test_every_choice_is_known_or_of_the_command_line_alone() -> None:
    of_ours = {tuple(value.value) for value in KNOWN.values() if isinstance(value.value, tuple)}
    alone = {("bfloat16", "float16"), ("training", "inference"), ("zero", "default")}
    choices = {
        tuple(option.type.choices)
        for _, command in commands()
        for option in command.params
        if isinstance(option.type, click.Choice)
    }
    assert choices >= alone
    assert choices <= of_ours | alone
