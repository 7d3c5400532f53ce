"""Examples in memory."""

from dataclasses import dataclass

from torch import Tensor


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
