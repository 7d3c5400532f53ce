"""Images with labels: made ones, scikit-learn's digits, MNIST and Fashion-MNIST.

Fashion-MNIST comes from Debian's package (``apt-get install dataset-fashion-mnist``), or from any folder that holds the
four gzipped IDX files, as MNIST does.
"""

import gzip
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from aimgraph.errors import ConfigError
from aimgraph.experiment.images import Images
from aimgraph.experiment.made import MADE
from aimgraph.experiment.recipe import Data

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Split:
    """Images to train on, and images that are never trained on."""

    train: Images
    test: Images


@cache
def digits() -> Split:
    """scikit-learn's 1,797 digits, [B, 1, 8, 8] in [-1, 1]; every third one is for the test."""
    from sklearn.datasets import load_digits  # it takes a second to import

    found = load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return _every_third(Images(pixels, torch.tensor(found.target)))


def _every_third(images: Images) -> Split:
    held_out = torch.arange(len(images)) % 3 == 0
    return Split(images.at(~held_out), images.at(held_out))


@cache
def fashion_mnist(folder: Path, train: int | None, test: int | None) -> Split:
    """The first images of MNIST's or Fashion-MNIST's two parts, or all, [B, 1, 28, 28] in [-1, 1].

    Raises:
        FileNotFoundError: `folder` does not hold the files.
    """
    names = [f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} does not hold {missing[0]}: apt-get install dataset-fashion-mnist, or give a folder that holds "
            "the gzipped IDX files"
        )
    parts = [_idx_images(folder, part, count) for part, count in (("train", train), ("t10k", test))]
    return Split(*parts)


def _idx_images(folder: Path, part: str, count: int | None) -> Images:
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", 8, count)
    size = len(labels) * 28 * 28
    pixels = _idx(folder / f"{part}-images-idx3-ubyte.gz", 16, size).reshape(len(labels), 1, 28, 28)
    return Images(pixels.float() / 127.5 - 1, labels.long())


def _idx(path: Path, header: int, size: int | None) -> Tensor:
    """The first bytes behind the header of an IDX file, or all."""
    with gzip.open(path) as file:
        content = file.read() if size is None else file.read(header + size)
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8)


@dataclass(frozen=True)
class Parts:
    """The examples of an experiment.

    Attributes:
        train: To train on.
        validation: That rates are chosen by.
        test: Looked at once.
    """

    train: Images
    validation: Images
    test: Images


def examples(data: Data) -> Parts:
    """The examples that a recipe asks for; the same for every arm and seed.

    Raises:
        ConfigError: They are not there, or fewer than asked for.
    """
    split = _split(data)
    order = torch.randperm(len(split.train), generator=Generator().manual_seed(0))
    wanted = len(order) - data.validation if data.train is None else data.train
    if wanted < 1 or wanted + data.validation > len(order):
        raise ConfigError(
            f"data.train={data.train} and data.validation={data.validation}: {data.name} has {len(order)} to train on"
        )
    if data.test is not None and data.test > len(split.test):
        raise ConfigError(f"data.test={data.test}: {data.name} has {len(split.test)} to test on")
    chosen = split.train.at(order[data.validation : data.validation + wanted]), split.train.at(order[: data.validation])
    test = split.test if data.test is None else split.test.at(torch.arange(data.test))
    return Parts(*(_resized(images, data.side) for images in (*chosen, test)))


def _split(data: Data) -> Split:
    if data.name == "digits":
        return digits()
    if data.name in MADE:
        make = MADE[data.name]
        train, test = (data.train or TRAIN) + data.validation, data.test or TRAIN // 4
        return Split(make(train, Generator().manual_seed(0)), make(test, Generator().manual_seed(1)))
    try:
        return fashion_mnist(FASHION_FOLDER if data.folder is None else Path(data.folder), None, None)
    except FileNotFoundError as error:
        raise ConfigError(f"data.folder: {error}") from error


TRAIN = 4096
"""Examples that are made to train on where nobody says how many; a quarter as many to test on."""


def _resized(images: Images, side: int | None) -> Images:
    """Images of `side` pixels a side and three channels, if it is given."""
    if side is None:
        return images
    pixels: Tensor = F.interpolate(images.pixels, size=(side, side), mode="bilinear", align_corners=False)
    return Images(pixels.expand(-1, 3, -1, -1), images.labels)
