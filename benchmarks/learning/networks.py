"""Small networks of the tasks."""

import torch
from torch import Tensor, nn

from aimgraph.models_zoo.pretrained import efficientnet_lite0


def position_blind(channels: int = 16, classes: int = 16) -> nn.Module:
    """Three convolutions with circular padding, averaged over all places: shifting an image changes nothing."""
    layers: list[nn.Module] = []
    for inputs in (1, channels, channels):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1, padding_mode="circular"), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def digits_cnn() -> nn.Module:
    """Three convolutions, the last two with stride 2, averaged over all places: [B, 1, 8, 8] -> [B, 10]."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Block(nn.Module):
    """Two convolutions and a shortcut, which is a convolution where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, outputs, H / stride, W / stride]."""
        hidden = self.norm1(self.conv1(x)).relu()
        return torch.as_tensor((self.norm2(self.conv2(hidden)) + self.shortcut(x)).relu())


def small_resnet(classes: int = 10) -> nn.Module:
    """A stem and three blocks of 16, 32 and 64 channels: [B, 1, H, W] -> [B, classes]."""
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2)]
    stem = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def with_plain_convolutions(model: nn.Module) -> nn.Module:
    """`model`, whose convolutions that pad by themselves are a padding and one of torch's: peft makes no other ones."""
    for path, layer in list(model.named_modules()):
        padding = getattr(layer, "static_padding", None)
        if isinstance(layer, nn.Conv2d) and isinstance(padding, nn.Module):
            options = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
            plain = nn.Conv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, bias=layer.bias is not None, **options
            )
            plain.weight, plain.bias = layer.weight, layer.bias
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Sequential(padding, plain))
    return model


def plain_lite0() -> nn.Module:
    """The pretrained EfficientNet-Lite0 with convolutions of torch's alone."""
    return with_plain_convolutions(efficientnet_lite0())


class FirstLogits(nn.Module):
    """The pretrained EfficientNet-Lite0 whose first logits stand for the classes of another task."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.network, self.classes = efficientnet_lite0(), classes

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, classes]."""
        return torch.as_tensor(self.network(x)[:, : self.classes])
