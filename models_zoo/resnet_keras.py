"""ResNet-50 as keras.applications builds it: the control of the seed's experiment.

Differs from torchvision's: every convolution has a bias, a stage's stride sits on the first 1x1
convolution of its first block, batch norm has epsilon 1.001e-5 and momentum 0.99 (torch: 0.01).
Counted as Keras does, running statistics included, it has 23,833,592 parameters at 120 classes.

Source: He et al., "Deep Residual Learning for Image Recognition", 2015, with the layout of
keras.applications.resnet.ResNet50.
"""

from torch import Tensor, nn

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
"""(width, blocks) of the four stages; a block puts out four times its width."""


class Bottleneck(nn.Module):
    """1x1 (with the stride) -> 3x3 -> 1x1, plus a shortcut, convolved where shapes change.

    Args:
        inputs: Input channels.
        width: Channels of the two inner convolutions.
        stride: Stride of the first convolution and of the shortcut.
        project: Whether the shortcut is a convolution.
    """

    def __init__(self, inputs: int, width: int, stride: int, project: bool) -> None:
        super().__init__()
        outputs = 4 * width
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), _norm(outputs)) if project else nn.Identity()
        )
        self.conv1 = nn.Conv2d(inputs, width, 1, stride)
        self.norm1 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = _norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1)
        self.norm3 = _norm(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, 4 * width, H / stride, W / stride]."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


class ResNetKeras(nn.Module):
    """ResNet-50 with an optional stem stride of 1, as the article's memory network has it.

    Args:
        num_classes: Outputs of the classifier.
        stem_stride: Stride of the 7x7 stem; the control has 2, the article's network 1.
    """

    def __init__(self, num_classes: int = 1000, stem_stride: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.ZeroPad2d(3), nn.Conv2d(3, 64, 7, stem_stride), _norm(64), nn.ReLU(inplace=True), nn.ZeroPad2d(1)
        )
        self.pool = nn.MaxPool2d(3, 2)
        channels = 64
        self.stages = nn.ModuleList()
        for number, (width, count) in enumerate(STAGES):
            blocks = []
            for index in range(count):
                stride = 2 if index == 0 and number > 0 else 1
                blocks.append(Bottleneck(channels, width, stride, project=index == 0))
                channels = 4 * width
            self.stages.append(nn.Sequential(*blocks))
        self.head = nn.Linear(channels, num_classes)
        _keras_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits, [B, num_classes]."""
        x = self.pool(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1.001e-5, momentum=0.01)


def _keras_init(root: nn.Module) -> None:
    """Keras' default: Glorot-uniform weights, zero biases."""
    for module in root.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def resnet50_keras(num_classes: int = 1000, stem_stride: int = 2) -> ResNetKeras:
    """The control network of the seed's experiment, freshly initialised."""
    return ResNetKeras(num_classes, stem_stride)


def keras_parameters(root: nn.Module) -> int:
    """Parameters as Keras counts them: batch norm's running mean and variance are among them."""
    counts = sum(parameter.numel() for parameter in root.parameters())
    return counts + sum(
        buffer.numel() for name, buffer in root.named_buffers() if name.endswith(("running_mean", "running_var"))
    )
