"""Choosing layers by glob, regular expression or callable, with errors that show near misses."""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping

from aimgraph.errors import PlanError


def matches(pattern: str, path: str) -> bool:
    """Whether a glob, or a regular expression after ``re:``, matches the whole path."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], path) is not None
    return fnmatch.fnmatchcase(path, pattern)


def select_paths(
    patterns: Iterable[str],
    paths: Iterable[str],
    what: str,
    unusable: Mapping[str, str] | None = None,
    lacking: str = "can't read",
) -> list[str]:
    """The paths that some pattern matches, in the order of `paths`.

    Args:
        patterns: Globs or ``re:`` regexes.
        paths: What can be chosen.
        what: Names the option in the error.
        unusable: Paths that exist but can't be chosen, with the reason.
        lacking: What these can't do.

    Raises:
        PlanError: A pattern matches nothing; the message lists near misses, and layers that it
            does match but that can't be chosen.
    """
    known = list(paths)
    for pattern in patterns:
        if any(matches(pattern, path) for path in known):
            continue
        blocked = [f"{path} ({why})" for path, why in (unusable or {}).items() if matches(pattern, path)]
        if blocked:
            raise PlanError(f"{what}: {pattern!r} matches only layers that {lacking}: {_few(blocked)}")
        near = difflib.get_close_matches(pattern.removeprefix("re:"), known, n=4, cutoff=0.4)
        hint = f"near misses: {', '.join(near)}" if near else f"there are: {_few(known)}"
        raise PlanError(f"{what}: {pattern!r} matches nothing; {hint}")
    return [path for path in known if any(matches(pattern, path) for pattern in patterns)]


def _few(items: list[str], most: int = 6) -> str:
    rest = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + rest
