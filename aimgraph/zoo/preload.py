"""Imported once by the process that all workers are forked from: what every row needs."""

import contextlib

import aimgraph.zoo.levels  # noqa: F401
from aimgraph.errors import ExampleInputError
from aimgraph.models_zoo.loader import import_library

for _name in ("torchvision", "timm"):
    with contextlib.suppress(ExampleInputError):  # not installed: its models will say so
        import_library(_name)
