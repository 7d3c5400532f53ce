"""Marks of tests that `make test` leaves out."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(values: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """The values of a parameter, all but those `kept` marked as slow.

    Raises:
        ValueError: One that is kept is not among them.
    """
    values = list(values)
    if unknown := [value for value in kept if value not in values]:
        raise ValueError(f"not among the values: {unknown}")
    return [value if value in kept else pytest.param(value, marks=pytest.mark.slow) for value in values]
