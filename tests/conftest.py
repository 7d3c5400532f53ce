"""Random examples: the same ones in every run; ``FUZZ=10`` draws new ones, and ten times as many."""

import os

from hypothesis import settings

settings.register_profile("repeat", derandomize=True)
if not os.environ.get("FUZZ"):
    settings.load_profile("repeat")
