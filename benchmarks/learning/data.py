"""Images with labels: made squares, scikit-learn's digits, Fashion-MNIST.

Fashion-MNIST comes from Debian's package (``apt-get install dataset-fashion-mnist``), or from any folder that holds the
four gzipped IDX files.
"""

import gzip
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CELLS, CELL, SQUARE = 4, 4, 2
BRIGHT, NOISE = 4.0, 0.4  # the deviation of all pixels is then 0.6


@dataclass(frozen=True)
class Images:
    """Images and what they show.

    Attributes:
        pixels: float32, [B, C, H, W].
        labels: int64, [B].
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor) -> "Images":
        """Some of them, in the order of `index`."""
        return Images(self.pixels[index], self.labels[index])


@dataclass(frozen=True)
class Split:
    """Images to train on, and images that are never trained on."""

    train: Images
    test: Images


def squares(count: int, generator: Generator) -> Images:
    """Images of 16 x 16 pixels; the label is the one of 4 x 4 cells that holds a bright 2 x 2 square.

    The square lies anywhere inside of its cell. Its pixels are 4, all others 0; noise from N(0, 0.4^2) is
    added to all pixels.
    """
    side = CELLS * CELL
    pixels = NOISE * torch.randn(count, 1, side, side, generator=generator)
    labels = torch.randint(CELLS**2, (count,), generator=generator)
    inside = torch.randint(CELL - SQUARE + 1, (2, count), generator=generator)
    rows, cols = (labels // CELLS) * CELL + inside[0], (labels % CELLS) * CELL + inside[1]
    each = torch.arange(count)
    for row in range(SQUARE):
        for col in range(SQUARE):
            pixels[each, 0, rows + row, cols + col] += BRIGHT
    return Images(pixels, labels)


@cache
def digits() -> Split:
    """scikit-learn's 1,797 digits, [B, 1, 8, 8] in [-1, 1]; every third one is for the test."""
    found = load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return _every_third(Images(pixels, torch.tensor(found.target)))


def _every_third(images: Images) -> Split:
    held_out = torch.arange(len(images)) % 3 == 0
    return Split(images.at(~held_out), images.at(held_out))


@cache
def fashion_mnist(folder: Path, train: int, test: int) -> Split:
    """The first images of Fashion-MNIST's two parts, [B, 1, 28, 28] in [-1, 1].

    Raises:
        FileNotFoundError: `folder` does not hold the files.
    """
    names = [f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} does not hold {missing[0]}: apt-get install dataset-fashion-mnist, or give a folder that holds "
            "the gzipped IDX files with --fashion-mnist"
        )
    parts = [_idx_images(folder, part, count) for part, count in (("train", train), ("t10k", test))]
    return Split(*parts)


def _idx_images(folder: Path, part: str, count: int) -> Images:
    pixels = _idx(folder / f"{part}-images-idx3-ubyte.gz", 16, count * 28 * 28).reshape(count, 1, 28, 28)
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", 8, count)
    return Images(pixels.float() / 127.5 - 1, labels.long())


def _idx(path: Path, header: int, size: int) -> Tensor:
    """The first bytes behind the header of an IDX file."""
    with gzip.open(path) as file:
        content = file.read(header + size)
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8)
