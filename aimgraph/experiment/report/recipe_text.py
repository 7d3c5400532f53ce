"""A recipe as the text of a TOML file.

TOML's quoted strings are JSON's, but for the code points that JSON writes as surrogates, and for DEL.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from aimgraph.experiment.recipe import Recipe


def recipe_text(recipe: Recipe) -> str:
    """What `read_recipe` reads as the same recipe; every default is written out, so that later ones change nothing."""
    content = _without_none(recipe.model_dump(mode="json"))
    plain = {name: value for name, value in content.items() if not isinstance(value, Mapping)}
    tables = {name: value for name, value in content.items() if isinstance(value, Mapping)}
    lines = _entries(plain)
    for name, table in tables.items():
        if name == "arms":
            for arm, entries in table.items():
                lines += ["", f"[arms.{_key(arm)}]", *_entries(entries)]
        else:
            lines += ["", f"[{_key(name)}]", *_entries(table)]
    return "\n".join(lines) + "\n"


def _without_none(value: Any) -> Any:
    """TOML has no null; what is None here has that as its default."""
    if isinstance(value, Mapping):
        return {name: _without_none(one) for name, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list) else value


def _entries(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(name)} = {_value(value)}" for name, value in table.items()]


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _string(name)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(name)} = {_value(one)}" for name, one in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list):
        return f"[{', '.join(_value(one) for one in value)}]"
    return _string(value) if isinstance(value, str) else json.dumps(value)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
