"""Classes that differ in numbers alone, as one with arguments.

A class is text in which a class below it is called as ``@3@(64, 128, 2)``: its number, and every number that is in its
text, in order. Texts that are the same but for numbers are one class. What differs among them are its arguments;
numbers that are always equal are one.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from aimgraph.source_code.copied import NAMES
from aimgraph.source_code.layout import MARK, WIDTH
from aimgraph.source_code.literals import RESERVED

NUMBER = re.compile(r"(?<![\w.@\"])\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w@\"])")
"""A number that is no part of a name, a string, or the call of a class."""

_CALL = re.compile(r"@(\d+)@\(([^()]*)\)")


@dataclass
class Skeleton:
    """Classes that differ in numbers alone.

    Attributes:
        parts: Their text, cut at the numbers.
        name: What they are called.
        base: What they inherit from.
        seen: The numbers of each of them.
        comments: What stands behind the `MARK` of each line, if it is the same in all of them.
    """

    parts: tuple[str, ...]
    name: str
    base: str = "nn.Module"
    seen: list[tuple[str, ...]] = field(default_factory=list)
    comments: list[str] | None = None

    @property
    def columns(self) -> dict[int, int]:
        """Place of a number that differs -> the first place with the same numbers."""
        by_value: dict[tuple[str, ...], int] = {}
        rows = list(zip(*self.seen, strict=True))
        return {place: by_value.setdefault(values, place) for place, values in enumerate(rows) if len(set(values)) > 1}

    @property
    def arguments(self) -> list[int]:
        """Places of the numbers that are arguments."""
        return sorted(set(self.columns.values()))


@dataclass
class Skeletons:
    """All classes, those that others call before these.

    Attributes:
        found: Their texts without numbers -> which one it is.
        all: The classes.
        reserved: Names that no class but the module's own may have.
    """

    found: dict[tuple[str, ...], int] = field(default_factory=dict)
    all: list[Skeleton] = field(default_factory=list)
    reserved: set[str] = field(default_factory=set)

    def call(self, code: str, name: str, base: str = "nn.Module", *, root: bool = False) -> str:
        """Note a class; how another one calls it."""
        code, comments = without_comments(code)
        parts, numbers = tuple(NUMBER.split(code)), tuple(NUMBER.findall(code))
        number = self.found.setdefault(parts, len(self.all))
        if number == len(self.all):
            taken = NAMES | RESERVED | self.reserved | {one.name for one in self.all}
            chosen = name if root else next(one for one in numbered(name) if one not in taken)
            self.all.append(Skeleton(parts, chosen, base))
        skeleton = self.all[number]
        known = comments if skeleton.comments is None else skeleton.comments
        skeleton.comments = [one if one == other else "" for one, other in zip(known, comments, strict=True)]
        if numbers not in skeleton.seen:
            skeleton.seen.append(numbers)
        return f"@{number}@({', '.join(numbers)})"

    def texts(self) -> Iterable[tuple[str, str]]:
        """Name and text of each class, in order."""
        names: list[dict[int, str]] = []
        for skeleton in self.all:
            names.append(_named(skeleton, self.all, names))
            filled = _filled(skeleton, names[-1])
            text = self.resolved(_with_arguments(filled, names[-1], skeleton.seen))
            yield skeleton.name, with_comments(text, skeleton.comments or [])

    def resolved(self, text: str) -> str:
        """A text with classes called by name, and with the arguments that they take."""

        def called(match: re.Match[str]) -> str:
            skeleton = self.all[int(match[1])]
            given = match[2].split(", ") if match[2] else []
            return f"{skeleton.name}({', '.join(given[place] for place in skeleton.arguments)})"

        return _CALL.sub(called, text)


def without_comments(code: str) -> tuple[str, list[str]]:
    """A text with a `MARK` in the place of each comment, and the comments."""
    pairs = [line.partition(MARK) for line in code.split("\n")]
    return "\n".join(line + mark for line, mark, _ in pairs), [comment for _, mark, comment in pairs if mark]


def with_comments(text: str, comments: Sequence[str]) -> str:
    """A text with comments in the place of each `MARK`, where there is one and room for it."""
    left, lines = iter(comments), list[str]()
    for line in text.split("\n"):
        comment = f"  # {next(left)}" if MARK in line else ""
        line = line.removesuffix(MARK)
        lines.append(line + comment if len(comment) > _BARE and len(line + comment) <= WIDTH else line)
    return "\n".join(lines)


_BARE = len("  # ")


def _filled(skeleton: Skeleton, names: Mapping[int, str]) -> str:
    """The text with names where numbers differ; a forward finds them on the module."""
    columns, kept = skeleton.columns, dict[str, None]()
    text = skeleton.parts[0]
    for place, (value, part) in enumerate(zip(skeleton.seen[0], skeleton.parts[1:], strict=True)):
        name = names[columns[place]] if place in columns else None
        if name is not None and _FORWARD in text:
            kept[name] = None
            name = f"self.{name}"
        text += (value if name is None else name) + part
    return _held(text, list(kept)) if kept else text


def _held(text: str, names: Sequence[str]) -> str:
    """A class whose constructor keeps some of its arguments."""
    if _INIT not in text:
        text = f"    def __init__(self) -> None:\n        {_INIT})\n\n{text}"
    place = text.index("\n", text.index(_INIT))
    return text[:place] + "".join(f"\n        self.{name} = {name}" for name in names) + text[place:]


def _with_arguments(text: str, names: Mapping[int, str], seen: Sequence[tuple[str, ...]]) -> str:
    kinds = {place: "int" if all(one[place].isdigit() for one in seen) else "float" for place in names}
    given = "".join(f", {name}: {kinds[place]}" for place, name in names.items())
    return text.replace("def __init__(self) -> None:", f"def __init__(self{given}) -> None:", 1)


_FORWARD, _INIT = "    def forward(", "super().__init__("


def _named(skeleton: Skeleton, known: Sequence[Skeleton], names: Sequence[Mapping[int, str]]) -> dict[int, str]:
    """A name for each argument: what the first call that takes it calls it."""
    found: dict[int, str] = {}
    for place in skeleton.arguments:
        before = "".join(f"{part}0" for part in skeleton.parts[:place]) + skeleton.parts[place]
        name = _word(before, known, names)
        member = re.findall(r"self\.(\w+) = |add_module\(\"(\w+)\"", before)
        prefix = next((one or other for one, other in reversed(member)), "")
        candidates = (name, f"{prefix}_{name}".strip("_"), *(f"{name}{number}" for number in range(2, 10_000)))
        text = "".join(skeleton.parts)
        found[place] = next(one for one in candidates if one not in found.values() and f"self.{one}" not in text)
    return found


def _word(before: str, known: Sequence[Skeleton], names: Sequence[Mapping[int, str]]) -> str:
    """What a number is, by the text before it."""
    if keyword := re.search(r"(\w+)=\(?$", before):
        return keyword[1]
    opened = _innermost(before)
    place = opened[1].count(",")
    if child := re.fullmatch(r"@(\d+)@", opened[0]):
        which = known[int(child[1])]
        column = which.columns.get(place)
        return names[int(child[1])][column] if column is not None else "size"
    words = next((words for start, words in _WORDS if opened[0].startswith(start)), ("size",))
    return words[min(place, len(words) - 1)]


_WORDS = (
    ("nn.Conv", ("inputs", "outputs", "kernel_size")),
    ("FewPlacesConv", ("channels", "outputs", "kernel_size")),
    ("PointwiseConv", ("channels", "outputs", "kernel_size")),
    ("nn.Linear", ("inputs", "outputs")),
    ("nn.BatchNorm", ("channels",)),
    ("nn.LayerNorm", ("channels",)),
    ("nn.GroupNorm", ("groups", "channels")),
    ("range", ("depth",)),
)
"""How a call begins -> what its positional arguments are."""


def _innermost(before: str) -> tuple[str, str]:
    """The call that is open at the end of a text: what is called, and its arguments so far."""
    depth, arguments = 0, ""
    for place in range(len(before) - 1, -1, -1):
        sign = before[place]
        depth += {")": 1, "]": 1, "(": -1, "[": -1}.get(sign, 0)
        if depth < 0:
            if sign == "(" and (called := re.search(r"[\w.@]+$", before[:place])):
                return called[0], arguments
            return "", arguments
        arguments = (sign if depth == 0 else "") + arguments
    return "", arguments


def numbered(name: str) -> Iterable[str]:
    """Names for a class: ``Block``, ``Block2``, ``Block3``, ..."""
    yield name
    yield from (f"{name}{number}" for number in range(2, 10_000))
