"""Random numbers and examples: the same ones in every run, whichever tests ran before.

``SEED=n`` starts every test from another seed; ``FUZZ=10`` draws new examples, and ten times as many.
"""

import os
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from aimgraph.runtime.specs import PARTS
from tests.browser import browser as browser  # a fixture for all tests

settings.register_profile("repeat", derandomize=True)
if not os.environ.get("FUZZ"):
    settings.load_profile("repeat")

SEED = int(os.environ.get("SEED", "0"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test draws from the seed itself, so one that needs luck fails always or never."""
    random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.fixture
def kept_parts() -> Iterator[None]:
    """Forget the parts that a test registers."""
    before = {role: dict(parts) for role, parts in PARTS.items()}
    yield
    for role, parts in before.items():
        PARTS[role].clear()
        PARTS[role].update(parts)
