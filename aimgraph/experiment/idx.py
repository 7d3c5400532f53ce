"""Images in the IDX files of MNIST, and of the data sets that took its format over.

Fashion-MNIST comes from Debian's package (``apt-get install dataset-fashion-mnist``), or from any folder that holds
the four files. They may be gzipped or not, whatever they are called, and be named with a dash or with a dot
(``train-images-idx3-ubyte``, ``train-images.idx3-ubyte``).

Source: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

import gzip
import math
import struct
import zlib
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from aimgraph.errors import ConfigError
from aimgraph.experiment.images import ByteImages, Split

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts Fashion-MNIST."""

_BYTES = 0x08
"""The type of unsigned bytes, third byte of a file."""

_GZIPPED = b"\x1f\x8b"


@cache
def idx_split(folder: Path) -> Split:
    """Both parts of MNIST, Fashion-MNIST or the like, [B, 1, H, W] in [-1, 1]; of these two, 28 x 28 pixels.

    They are read once a process and stay in memory, a byte for each pixel.

    Args:
        folder: It holds the four files.

    Raises:
        ConfigError: It does not, or one of them is no whole IDX file, or they do not fit each other.
    """
    train, test = (_part(folder, part) for part in ("train", "t10k"))
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        sizes = " and ".join(f"{height} x {width}" for height, width in (one.pixels.shape[2:] for one in (train, test)))
        raise ConfigError(f"data.folder: images of both parts in {folder} have {sizes} pixels: take files of one set")
    return Split(train, test)


def _part(folder: Path, part: str) -> ByteImages:
    images, labels = _file(folder, f"{part}-images", 3), _file(folder, f"{part}-labels", 1)
    pixels, classes = _read(images, 3), _read(labels, 1)
    if len(pixels) != len(classes):
        raise ConfigError(
            f"data.folder: {images} holds {len(pixels)} images, {labels} {len(classes)} labels: take files of one set"
        )
    return ByteImages(pixels[:, None], classes.long())


def _file(folder: Path, stem: str, dimensions: int) -> Path:
    """Where one of the four files lies, under one of its names."""
    names = [f"{stem}{mark}idx{dimensions}-ubyte{end}" for end in (".gz", "") for mark in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(
        f"data.folder: {folder} does not hold {names[0]}, nor {', '.join(names[1:])}: apt-get install "
        "dataset-fashion-mnist, or give a folder that holds the four IDX files"
    )


def _read(path: Path, dimensions: int) -> Tensor:
    """What an IDX file of unsigned bytes holds."""
    content = _content(path)
    header = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, _BYTES, dimensions)):
        raise ConfigError(
            f"data.folder: {path} is no IDX file of bytes with {dimensions} dimensions: it begins with "
            f"{content[:4].hex(' ')}, and not with 00 00 {_BYTES:02x} {dimensions:02x}"
        )
    told = len(content) >= header
    shape = struct.unpack_from(f">{dimensions}I", content, 4) if told else ()
    if not told or len(content) != header + math.prod(shape):
        wanted = f"{header + math.prod(shape)} as its header says ({list(shape)})" if told else "a whole header"
        raise ConfigError(f"data.folder: {path} holds {len(content)} bytes and not {wanted}: fetch it again")
    if not math.prod(shape):
        raise ConfigError(f"data.folder: {path} is empty: its header says {list(shape)}")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).reshape(shape)


def _content(path: Path) -> bytearray:
    """The bytes of a file, unzipped if it is gzipped."""
    try:
        packed = path.read_bytes()
        return bytearray(gzip.decompress(packed) if packed[:2] == _GZIPPED else packed)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"data.folder: {path} can't be read ({error}): fetch it again") from error
