"""Imported once by the process that all workers are forked from: what every row needs.

A first transform fills caches of torch (modules imported late, shapes of operations), so that no
row pays for them. It runs on the meta device in one thread: a process with threads can't be forked.
"""

import contextlib

import torch
from torch import nn

from aimgraph.api.transform import transform
from aimgraph.models_zoo.loader import import_library

torch.set_num_threads(1)


for _name in ("torchvision", "timm"):
    with contextlib.suppress(Exception):  # not installed, or broken: the rows of its models will say so
        import_library(_name)


with contextlib.suppress(Exception), torch.device("meta"):
    _network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    transform(_network, torch.zeros(2, 3, 8, 8))
