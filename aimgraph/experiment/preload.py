"""Imported once by the process that all units are forked from: what every unit needs."""

import contextlib
from importlib.util import find_spec

import torch

from aimgraph.models_zoo.loader import import_library

torch.set_num_threads(1)

for _name in ("torchvision", "timm"):
    with contextlib.suppress(Exception):  # not installed, or broken: the units that need it will say so
        import_library(_name)

import accelerate  # noqa: E402, F401
import torchmetrics.classification  # noqa: E402
import torchmetrics.regression  # noqa: E402, F401

import aimgraph.experiment.unit  # noqa: E402, F401

if find_spec("sklearn"):
    import sklearn.datasets  # noqa: F401
