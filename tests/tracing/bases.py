"""The model around which the tests of this folder write forwards that are hard to trace."""

import torch
from torch import nn

X = torch.linspace(-1, 1, 12).reshape(3, 4)


class Base(nn.Module):
    """One linear layer and some buffers; subclasses say what happens around it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("std", torch.full((4,), 2.0))
        self.calls = 0
        self.last: object = None
