"""A network that only benchmarks have."""

import torch
from torch import Tensor, nn

from aimgraph.models_zoo.pretrained import efficientnet_lite0


class FirstLogits(nn.Module):
    """The pretrained EfficientNet-Lite0 whose first logits stand for the classes of another task."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.network, self.classes = efficientnet_lite0(), classes

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, classes]."""
        return torch.as_tensor(self.network(x)[:, : self.classes])
