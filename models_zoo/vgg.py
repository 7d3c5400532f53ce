"""VGG-16, the second network that the article tried.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", 2014, configuration D.
"""

import torch
from torch import Tensor, nn

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""(width, convolutions) of the five blocks; each ends in a 2x2 max pool."""


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions and three linear layers.

    Args:
        num_classes: Outputs of the classifier.
        hidden: Units of the two hidden linear layers.
    """

    def __init__(self, num_classes: int = 1000, hidden: int = 4096) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width, count in BLOCKS:
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            nn.Linear(channels * 49, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits, [B, num_classes]."""
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def vgg16(num_classes: int = 1000, hidden: int = 4096) -> VGG16:
    """VGG-16, freshly initialised."""
    return VGG16(num_classes, hidden)
