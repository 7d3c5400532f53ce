"""A plain multi-layer perceptron, the article's fully connected network."""

import itertools

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        features: Input features.
        hidden: Units of each hidden layer.
        num_classes: Outputs.
    """

    def __init__(self, features: int = 784, hidden: tuple[int, ...] = (512, 512), num_classes: int = 10) -> None:
        super().__init__()
        sizes = (features, *hidden)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """[B, features] -> logits, [B, num_classes]."""
        logits: Tensor = self.layers(x)
        return logits


def mlp(features: int = 784, hidden: tuple[int, ...] = (512, 512), num_classes: int = 10) -> MLP:
    """A fresh multi-layer perceptron."""
    return MLP(features, hidden, num_classes)
