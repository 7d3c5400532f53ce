"""The forwards of train and of eval mode as one, where they differ little."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from aimgraph.source_code.layout import MARK

INDENT = "    "
MOST = 0.25
"""The share of lines that may differ."""


def in_one(train: Sequence[str], evaluation: Sequence[str]) -> list[str]:
    """One forward that does what either does in its mode; empty where they differ much, or inside of blocks.

    Each mode runs exactly the lines that it ran: what only one has stands below ``if self.training:``.

    Args:
        train: Lines of the one, its signature first.
        evaluation: Of the other.
    """
    bare = [[line.partition(MARK)[0] for line in lines] for lines in (train, evaluation)]
    if bare[0][0] != bare[1][0]:
        return []
    found: list[str] = []
    differ = 0
    for kind, i1, i2, j1, j2 in SequenceMatcher(a=bare[0], b=bare[1], autojunk=False).get_opcodes():
        if kind == "equal":
            found += train[i1:i2]
            continue
        ours, theirs = train[i1:i2], evaluation[j1:j2]
        if not (_is_whole(train, i1, i2) and _is_whole(evaluation, j1, j2)):
            return []
        differ += len(ours) + len(theirs)
        found += _guarded("if self.training:", ours) if ours else _guarded("if not self.training:", theirs)
        if ours and theirs:
            found += _guarded("else:", theirs)
    return found if differ <= MOST * (len(train) + len(evaluation)) else []


def _guarded(condition: str, lines: Sequence[str]) -> list[str]:
    return [f"{INDENT}{condition}", *(INDENT + line for line in lines)]


def _is_whole(lines: Sequence[str], start: int, stop: int) -> bool:
    """Whether some lines neither begin nor end inside of a block."""
    edges = [lines[place] for place in (start, stop) if place < len(lines)]
    return all(not line.startswith(INDENT * 2) for line in edges)
