"""A sequence of passes as text: ``widen{parameters=1.5},memory{shape=(7,7,4)}``."""

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aimgraph.compiler.program import Pass
from aimgraph.config import AimConfig
from aimgraph.errors import ConfigError
from aimgraph.passes import EMITTING, PLANNING, WidenChannels

_STEP = re.compile(r"\s*([\w.:-]+)\s*(\{)?")
_HELP = 'such as "widen{parameters=1.5},memory{shape=(7,7,4)}"'


@dataclass(frozen=True)
class Sequence:
    """What a text asks for.

    Attributes:
        passes: The passes, in order.
        configs: The memories that they insert.
    """

    passes: tuple[Pass, ...]
    configs: tuple[AimConfig, ...] = field(default=())


def sequence(text: str) -> Sequence:
    """The passes of a text: ``widen{...}``, ``memory{...}``, or ``package.module:Pass{...}`` for one of the user's own.

    Options are those of `aimgraph.widen`, of `AimConfig`, or the fields of the pass; values are Python literals.

    Raises:
        ConfigError: It is of another form, or names what does not exist.
    """
    passes, configs = list[Pass](), list[AimConfig]()
    for name, options in _steps(text):
        if name == "memory":
            passes += [] if configs else [*PLANNING, *EMITTING]
            configs.append(AimConfig(**options))
        elif name == "widen":
            passes.append(_made(WidenChannels, name, options))
        elif ":" in name:
            passes.append(_made(_imported(name), name, options))
        else:
            raise ConfigError(f"--passes: {name!r} is neither widen, memory nor package.module:Pass; {_HELP}")
    return Sequence(tuple(passes), tuple(configs))


def _steps(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    place = 0
    while place < len(text):
        found = _STEP.match(text, place)
        if found is None:
            raise ConfigError(f"--passes: a name is wanted at {text[place:]!r}; {_HELP}")
        place = found.end()
        options: dict[str, Any] = {}
        if found[2]:
            end = _closing(text, place)
            options, place = _options(text[place:end]), end + 1
        yield found[1], options
        rest = text[place:].lstrip()
        if rest and not rest.startswith(","):
            raise ConfigError(f"--passes: a comma is wanted at {rest!r}; {_HELP}")
        place = len(text) - len(rest) + 1 if rest else len(text)


def _closing(text: str, start: int) -> int:
    """Where the brace that is open at a place closes."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ConfigError(f"--passes: a closing brace is wanted after {text[start:]!r}; {_HELP}")


def _options(text: str) -> dict[str, Any]:
    """``parameters=1.5, how="zero"`` as a dict."""
    try:
        keywords = _keywords(ast.parse(f"options({text})", mode="eval").body)
        return {name: ast.literal_eval(value) for name, value in keywords.items()}
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"--passes: options {text!r} can't be read ({error}); {_HELP}") from error


def _keywords(call: ast.expr) -> dict[str, ast.expr]:
    found = {item.arg: item.value for item in call.keywords} if isinstance(call, ast.Call) else {}
    if not isinstance(call, ast.Call) or call.args or None in found:
        raise ValueError("options have names")
    return {str(name): value for name, value in found.items()}


def _imported(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--passes: {name} can't be imported: {error}") from error


def _made(kind: Any, name: str, options: dict[str, Any]) -> Pass:
    try:
        made: Pass = kind(**options)
    except TypeError as error:
        raise ConfigError(f"--passes: {name}: {error}") from error
    return made
