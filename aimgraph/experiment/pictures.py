"""Picture files that are decoded when they are asked for."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from aimgraph.errors import ConfigError
from aimgraph.experiment.extras import import_extra
from aimgraph.experiment.images import Images, as_floats

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
"""Of files that are taken for pictures, in any case."""

ROOM = 256 * 2**20
"""Bytes of decoded pictures that are kept in memory, so that small data sets are decoded once."""

MOST_THREADS = 8


@dataclass(frozen=True)
class Pictures:
    """Pictures in files, decoded when they are asked for; the first ones, up to `ROOM` bytes, are kept.

    Attributes:
        paths: Of the files.
        labels: int64, [B].
        side: All are given this many pixels a side.
        kept: Place -> pixels, uint8, [3, side, side], of those that are in memory.
    """

    paths: Sequence[Path]
    labels: Tensor
    side: int
    kept: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.paths)

    def at(self, index: Tensor) -> Images:
        """Some of them, in the order of `index`: [B, 3, side, side] in [-1, 1].

        They are decoded by as many threads as torch computes with, eight at most. What comes out does not depend on
        how many there are.

        Raises:
            ConfigError: A file is no picture that can be decoded, or Pillow is not installed.
        """
        places = torch.arange(len(self))[index].tolist()
        wanted = [place for place in dict.fromkeys(places) if place not in self.kept]
        import_extra("PIL.Image", "Pillow", "data that is picture files")  # here, not by several threads at once
        # A pool of its own for each call: threads of an earlier one are gone in a process that was forked since.
        with ThreadPoolExecutor(min(MOST_THREADS, torch.get_num_threads())) as pool:
            decoded = pool.map(lambda place: decode(self.paths[place], self.side), wanted)
            fresh = dict(zip(wanted, decoded, strict=True))
        pixels = torch.stack([fresh[place] if place in fresh else self.kept[place] for place in places])
        room = ROOM // (3 * self.side**2) - len(self.kept)
        self.kept.update(list(fresh.items())[: max(room, 0)])
        return Images(as_floats(pixels), self.labels[index])


def decode(path: Path, side: int) -> Tensor:
    """The pixels of a picture, uint8, [3, side, side].

    It is turned upright as its EXIF data says, and becomes red, green and blue. Then its shorter side is resized to
    `side`, bilinear and antialiased, and what is beyond `side` of the longer one is cut off at both ends.

    Raises:
        ConfigError: The file is missing or broken, or its pixels have no known range.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            # A JPEG file much larger than wanted is decoded at a half, fourth or eighth, which is several times faster.
            image.draft(None, (_SPARE * side, _SPARE * side))
            upright = _rgb(ImageOps.exif_transpose(image))
            fitted = ImageOps.fit(upright, (side, side), Image.Resampling.BILINEAR)
            return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()
    except Exception as error:  # decoders raise all kinds of them for files that are broken
        raise ConfigError(f"{path} is no picture that can be read ({error}): repair it or take it away") from error


_SPARE = 2
"""Pixels, for each one that is wanted, that a reduced JPEG file has at least; antialiasing needs some."""


def _rgb(image: "Image") -> "Image":
    """The same with 8 bits of red, green and blue. What is transparent gets the colour that the file has there."""
    if image.mode.startswith("I"):  # one channel of 16 bits, which Pillow may give as 32
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > _LARGEST:
            raise ValueError(f"values from {values.min()} to {values.max()}: save it with 8 or 16 bits a channel")
        return _from_array((values * 255 + _LARGEST // 2) // _LARGEST)
    if image.mode == "F":
        raise ValueError("values are floats, whose range is unknown: save it with 8 or 16 bits a channel")
    if "transparency" in image.info:  # Pillow warns of a palette with transparency that goes straight to RGB
        image = image.convert("RGBA")
    return image.convert("RGB")


_LARGEST = 2**16 - 1


def _from_array(values: "np.ndarray") -> "Image":
    from PIL import Image

    return Image.fromarray(values.astype(np.uint8)).convert("RGB")
