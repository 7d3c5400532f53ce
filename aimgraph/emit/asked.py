"""The arguments of the example inputs, compared with those of a call."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from aimgraph.inputs.arguments import NOT_GIVEN, Arguments, arguments_of
from aimgraph.runtime.guards import GuardError, Kind, argument_kind, other_kind


@dataclass(frozen=True)
class Asked:
    """What the example inputs of a forward are by name, as `torch.compile` can look at it: no signature is bound there.

    Attributes:
        places: Names of those that can be passed by position, in order.
        kinds: Name -> kind; of those that were left out, of the default.
        needed: Names of those without which the forward would take something of another kind.
    """

    places: tuple[str, ...] = ()
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    needed: tuple[str, ...] = ()


def asked_of(root: nn.Module, inputs: Arguments) -> Asked:
    """What the example inputs of the root's forward are by name."""
    arguments, signature = arguments_of(root, inputs), inspect.signature(root.forward).parameters
    by_keyword = {name for name, one in signature.items() if one.kind is one.KEYWORD_ONLY}
    places, kinds, needed = [], {}, []
    for one in arguments:
        name = one.keyword or one.name
        kinds[name] = argument_kind(one.passed)
        if one.name in signature or not one.keyword:
            places += [] if one.name in by_keyword else [one.name]
        default = one.default[0] if one.default else NOT_GIVEN
        if one.given and (one.default or one.name not in signature) and other_kind(default, kinds[name]) is not None:
            needed.append(name)
    return Asked(tuple(places), kinds, tuple(needed))


def unlike(asked: Asked, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GuardError | None:
    """What there is to say of a call whose arguments are not those of the example inputs; None if they are."""
    if len(args) > len(asked.places):
        return another_argument(f"number {len(args)}", had=False)
    given = {**dict(zip(asked.places, args, strict=False)), **kwargs}
    for name in asked.needed:
        if name not in given:
            return another_argument(name, had=True)
    for name, value in given.items():
        if name not in asked.kinds:
            return another_argument(name, had=False)
        found = other_kind(value, asked.kinds[name])
        if found is not None:
            return argument_of_another_kind(name, found)
    return None


def another_argument(name: str, *, had: bool) -> GuardError:
    """What there is to say where either the example inputs or a call have an argument."""
    return GuardError(
        f"the example inputs of the transform {'had' if had else 'did not have'} the argument {name!r}, unlike this "
        "call, so there is no graph: transform the model with example inputs that have the same arguments"
    )


def argument_of_another_kind(name: str, found: tuple[str, str]) -> GuardError:
    """What there is to say of an argument.

    Args:
        name: Of the argument.
        found: What it holds, and what it held.
    """
    return GuardError(
        f"the argument {name!r} holds {found[0]} where it held {found[1]} in the example inputs of the transform and "
        "was traced with these, so there is no graph: transform the model with example inputs of this kind"
    )
