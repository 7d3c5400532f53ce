"""Networks of the recipes that come with aimgraph: ``model = "aimgraph.experiment.networks:NAME"``."""

import copy
from functools import cache
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from aimgraph.errors import ConfigError
from aimgraph.experiment.digits import digits
from aimgraph.models_zoo.pretrained import efficientnet_lite0
from aimgraph.models_zoo.resnet_keras import resnet50_keras
from aimgraph.runtime.layer_kinds import is_layer
from aimgraph.runtime.parts import register
from aimgraph.runtime.specs import BlockSpec


def position_blind(channels: int = 16, classes: int = 16) -> nn.Module:
    """Three convolutions with circular padding, averaged over all places: shifting an image changes nothing.

    [B, 1, H, W] -> [B, classes].
    """
    layers: list[nn.Module] = []
    for inputs in (1, channels, channels):
        layers += [nn.Conv2d(inputs, channels, 3, padding=1, padding_mode="circular"), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def local_pixels(channels: int = 32, classes: int = 2) -> nn.Module:
    """Three 3x3 convolutions without pooling: what is said of a pixel depends on the 7 x 7 pixels around it.

    [B, 1, H, W] -> [B, classes, H, W].
    """
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(),
        nn.Conv2d(channels, classes, 3, padding=1),
    )  # fmt: skip


class Brightness(nn.Module):
    """Says what the brightness of an image is, from linear features of the mean of its pixels.

    `first` and `skip` read the same features; `first` is called before. A memory that takes its features from `skip`
    and is read by `first` shows it what earlier batches have left, and what it learns to make of that does not come
    back into the memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(1, _LEVELS, 3, padding=1, padding_mode="circular")
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.first = nn.Linear(_LEVELS, _HIDDEN)
        self.skip = nn.Linear(_LEVELS, _LEVELS)
        self.last = nn.Linear(_HIDDEN + _LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, H, W] -> [B, 1]."""
        levels = self.pool(self.filters(x))
        hidden = self.first(levels).relu()
        return torch.as_tensor(self.last(torch.cat([hidden, self.skip(levels)], dim=1)))


_LEVELS, _HIDDEN = 8, 32


class FeatureMeans(nn.Module):
    """An update block that writes the mean of each channel over its places, as it is: ``block = "feature-means"``.

    It has no parameters: a memory that is read in the next batch alone passes no gradient on to what wrote it.

    Args:
        spec: Of a memory of as many values as there are channels.
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        if spec.size != spec.features:
            raise ConfigError(
                f"block='feature-means' writes a value for each channel: the features have {spec.features}, and the "
                f"memory of shape {spec.shape} has {spec.size} values; give shape=({spec.features},)"
            )

    def forward(self, memory: Tensor, features: Tensor) -> Tensor:
        """The memory, [B, N], and features, [B, N, *S] -> [B, N]."""
        return features.flatten(2).mean(2) if features.dim() > 2 else features


register("block", "feature-means", FeatureMeans)


def digits_cnn() -> nn.Module:
    """Three convolutions, the last two with stride 2, averaged over all places: [B, 1, 8, 8] -> [B, 10]."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 64, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def trained_digits_cnn() -> nn.Module:
    """`digits_cnn`, in eval mode, trained on scikit-learn's digits of which none is among those to test on.

    The first call of a process trains it; each call gives a network of its own, with the same weights. Random states
    stay as they were.
    """
    return copy.deepcopy(_trained_digits_cnn())


@cache
@torch.enable_grad()
def _trained_digits_cnn() -> nn.Module:
    train = digits().train
    images = train.at(torch.arange(len(train)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = digits_cnn()
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = Generator().manual_seed(0)
    for _ in range(_EPOCHS):
        for index in torch.randperm(len(images), generator=order).split(_BATCH)[:-1]:  # the last one may be small
            loss = F.cross_entropy(model(images.pixels[index]), images.labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


_EPOCHS, _BATCH = 15, 32


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
        if is_layer(layer) and isinstance(padding, nn.Module):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, nn.Sequential(padding, _plain(layer)))
    return model


def _plain(layer: Any) -> nn.Conv2d:
    """Torch's convolution with the weights of another one, without its padding."""
    options = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, bias=layer.bias is not None, **options)
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


def plain_lite0() -> nn.Module:
    """The pretrained EfficientNet-Lite0 with convolutions of torch's alone: [B, 3, H, W] -> [B, 1000]."""
    return with_plain_convolutions(efficientnet_lite0())


def lite0_of_ten() -> nn.Module:
    """`plain_lite0` for ten classes, in eval mode: [B, 3, H, W] -> [B, 10].

    Its last layer has the first ten rows of the pretrained one.

    Raises:
        ExampleInputError: The packages that hold its code and weights are not installed.
    """
    model: Any = plain_lite0()
    rows = model._fc
    last = nn.Linear(rows.in_features, _TEN)
    with torch.no_grad():
        last.weight.copy_(rows.weight[:_TEN])
        last.bias.copy_(rows.bias[:_TEN])
    model._fc = last
    whole: nn.Module = model
    return whole.eval()


_TEN = 10


def dogs_resnet50() -> nn.Module:
    """The published notebook's network without its memory, ResNet-50 with stem stride 1.

    [B, 3, 224, 224] -> [B, 120].
    """
    return resnet50_keras(num_classes=120, stem_stride=1)
