"""The parts of a memory by name: sources, reads and update blocks, built in or registered by the user."""

import difflib
from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn

from aimgraph.errors import ConfigError
from aimgraph.runtime import reads, sources, updates  # noqa: F401  (their files add what is built in to PARTS)
from aimgraph.runtime.sources.given import GIVEN, GivenSource
from aimgraph.runtime.specs import PARTS, Factory, Role

_BUILT_IN: dict[Role, frozenset[str]] = {role: frozenset(parts) for role, parts in PARTS.items()}


def register(role: Role, name: str, factory: Factory) -> None:
    """Let a part of your own be asked for by a name, and saved and loaded under it.

    Args:
        role: ``"source"``, ``"read"`` or ``"block"``: the option of `AimConfig` that takes the name.
        name: Its name. One that was registered before is replaced.
        factory: Takes a `SourceSpec`, `ReadSpec` or `BlockSpec` and gives a `torch.nn.Module`; a class, for instance.

    Raises:
        ConfigError: There is no such role, the name is built in or empty, or the factory can't be called.

    Example:
        >>> aimgraph.register("read", "attention", AttentionRead)  # doctest: +SKIP
        >>> aim = aimgraph.transform(model, x, read="attention")  # doctest: +SKIP
    """
    if role not in PARTS:
        raise ConfigError(f"register: role={role!r}: the roles are {_listed(PARTS)}")
    if not isinstance(name, str) or not name or name in _BUILT_IN[role]:
        raise ConfigError(f"register: name={name!r}: give a name other than {_listed(sorted(_BUILT_IN[role]))}")
    if not callable(factory):
        raise ConfigError(f"register: the factory of {role} {name!r} is a {type(factory).__name__} and can't be called")
    PARTS[role][name] = factory


def factory_of(role: Role, asked: str | Factory | Tensor) -> Factory:
    """The factory that is asked for, itself, by its name or by the values of a source.

    Raises:
        ConfigError: There is none of that name; the message lists near misses and all names.
    """
    if isinstance(asked, Tensor):
        return partial(GivenSource, values=asked)
    if not isinstance(asked, str):
        return asked
    known = PARTS[role]
    if asked not in known:
        names = [name for name in known if name != GIVEN]  # that of a checkpoint is nobody's to ask for
        near = difflib.get_close_matches(asked, names, n=3, cutoff=0.4)
        hint = f"; near misses: {', '.join(near)}" if near else ""
        raise ConfigError(
            f"AimConfig {role}={asked!r}: there is no {role} of that name: use {_listed(names)}, or a factory, or "
            f"register one with aimgraph.register({role!r}, {asked!r}, factory){hint}"
        )
    return known[asked]


def name_of(role: Role, asked: str | Factory) -> str | Factory:
    """The name under which a factory is registered; what is asked for itself if there is none."""
    return next((name for name, factory in PARTS[role].items() if factory is asked), asked)


def redraw(part: nn.Module) -> None:
    """Draw all values of a part anew, by the ``reset_parameters`` of its modules.

    Raises:
        ConfigError: Nothing draws some of its parameters.
    """
    reset = getattr(part, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    own = next(iter(part._parameters), None)
    if own is not None:
        raise ConfigError(
            f"{type(part).__name__} has the parameter {own!r} and no reset_parameters(), so that nothing draws its "
            "values anew: give the class such a method"
        )
    for child in part.children():
        redraw(child)


def _listed(names: Iterable[str]) -> str:
    """`'a', 'b' or 'c'`."""
    *rest, last = map(repr, names)
    return f"{', '.join(rest)} or {last}" if rest else last
