"""Networks that recipes of the tests name."""

import torch
from torch import Tensor, nn


def small() -> nn.Module:
    """[B, 1, 8, 8] -> [B, 10]."""
    layers: list[nn.Module] = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


class Exact(nn.Module):
    """The same, computed in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small().double()

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.network(x.double()))


def broken() -> nn.Module:
    raise RuntimeError("no such network")
