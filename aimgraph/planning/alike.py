"""Layers of one stage that are alike, under one name: ``layer3.1-5`` for the layers of five blocks.

A stage is what stands before the first index of a path: ``layer3`` of ``layer3.0.conv1``, ``blocks`` of
``blocks.7.mlp.fc1``, ``encoder.layers.encoder_layer_`` of ``encoder.layers.encoder_layer_4.mlp.0``.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")

_INDEX = re.compile(r"(?:.*_)?\d+")
"""A component that is an index, or ends in ``_`` and one."""

_NUMBERED = re.compile(r".*\d")
"""A component that ends in a number, as ``denseblock1``; it is an index only where the path has no other."""

_MOST_RANGES = 3
"""More ranges of numbers than these are written as one, from the least to the largest."""


def folded(items: Iterable[T], path: Callable[[T], str], kind: Callable[[T], Hashable]) -> list[list[T]]:
    """The items in groups of one stage and one kind, in the order of their first members.

    Args:
        items: Layers, or what stands for one.
        path: The path of an item.
        kind: What items of a group have in common.
    """
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault((stage(path(item)), kind(item)), []).append(item)
    return list(groups.values())


def stage(path: str) -> str:
    """What the paths of a stage begin with; the path itself if it has no index."""
    parts = path.split(".")
    first = next((i for i, part in enumerate(parts) if _INDEX.fullmatch(part)), None)
    if first is None:
        first = next((i for i, part in enumerate(parts[:-1]) if _NUMBERED.fullmatch(part)), None)
    return path if first is None else ".".join([*parts[:first], parts[first].rstrip("0123456789")])


def common_name(paths: Sequence[str]) -> str:
    """One name for several paths: what they begin with, with their numbers where these first differ.

    Example:
        >>> common_name(["blocks.0.attn.qkv", "blocks.1.attn.qkv"])
        'blocks.0-1.attn.qkv'
        >>> common_name(["layer3.0.conv3", "layer3.1.conv1", "layer3.1.conv2"])
        'layer3.0-1'
    """
    rows, name = [path.split(".") for path in paths], list[str]()
    for i, column in enumerate(zip(*rows, strict=False)):
        if len(set(column)) == 1:
            name.append(column[0])
            continue
        stems = {part.rstrip("0123456789") for part in column}
        numbers = [part[len(part.rstrip("0123456789")) :] for part in column]
        if len(stems) == 1 and all(numbers):
            name.append(stems.pop() + _ranges({int(number) for number in numbers}))
            tails = {tuple(row[i + 1 :]) for row in rows}
            name += tails.pop() if len(tails) == 1 else ()
        break
    return ".".join(name)


def _ranges(numbers: set[int]) -> str:
    """``0-3,5``: sorted numbers, runs of them by their ends."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    if len(ranges) > _MOST_RANGES:
        ranges = [[min(numbers), max(numbers)]]
    return ",".join("-".join(map(str, ends)) for ends in ranges)
