"""Examples: images with labels, in memory or read when they are asked for."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Examples(Protocol):
    """Images with labels, which need not lie in memory."""

    @property
    def labels(self) -> Tensor:
        """Of all of them; see `Images`."""

    def __len__(self) -> int:
        """How many there are."""

    def at(self, index: Tensor) -> "Images":
        """Some of them, in the order of `index`, int64 [B]."""


@dataclass(frozen=True)
class Images:
    """Images and what they show.

    Attributes:
        pixels: float32, [B, C, H, W], about -1 to 1.
        labels: int64, classes: [B], or [B, H, W] for each pixel; float32, numbers to be learned: [B, outputs].
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor) -> "Images":
        """Some of them, in the order of `index`."""
        return Images(self.pixels[index], self.labels[index])


@dataclass(frozen=True)
class ByteImages:
    """Images that take a byte for each value in memory, and become floats when they are asked for.

    Attributes:
        pixels: uint8, [B, C, H, W]; 0 becomes -1, 255 becomes 1.
        labels: As of `Images`.
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor) -> Images:
        """Some of them, in the order of `index`."""
        return Images(as_floats(self.pixels[index]), self.labels[index])


def as_floats(pixels: Tensor) -> Tensor:
    """Bytes, 0 to 255, as float32 from -1 to 1."""
    return pixels.float() / 127.5 - 1


@dataclass(frozen=True)
class Split:
    """Examples to train on, and examples that are never trained on.

    Attributes:
        train: To train on.
        test: Never trained on.
        validation: Examples that whoever made the data has set apart for choices; None where there are none, and they
            have to be taken from `train`.
    """

    train: Examples
    test: Examples
    validation: Examples | None = None


def of_classes(labels: Tensor) -> bool:
    """Whether labels are one class for each image, [B], and neither one for each pixel nor numbers to be learned."""
    return labels.dim() == 1 and not labels.is_floating_point()


def of_pixels(labels: Tensor) -> bool:
    """Whether labels are a class for each pixel, [B, H, W]."""
    return labels.dim() == 3
