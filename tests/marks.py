"""Marks of tests that `make test` leaves out."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest
import torch

from aimgraph.bench.frozen import with_lora
from aimgraph.errors import ConfigError


def needs_lora() -> None:
    """Skip a test where peft can't be imported: torchao, which it looks for, may be of another torch."""
    try:
        with_lora(torch.nn.Sequential(torch.nn.Linear(2, 2)), 1, ["0"])
    except ConfigError as error:
        if "can't be imported" not in str(error):
            raise
        pytest.skip(str(error))


def mostly_slow(values: Iterable[Any], kept: Collection[Any]) -> list[Any]:
    """The values of a parameter, all but those `kept` marked as slow.

    Raises:
        ValueError: One that is kept is not among them.
    """
    values = list(values)
    if unknown := [value for value in kept if value not in values]:
        raise ValueError(f"not among the values: {unknown}")
    return [value if value in kept else pytest.param(value, marks=pytest.mark.slow) for value in values]
