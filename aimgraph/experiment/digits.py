"""scikit-learn's handwritten digits, which come with the package."""

from functools import cache

import torch

from aimgraph.experiment.extras import import_extra
from aimgraph.experiment.images import Images, Split


@cache
def digits() -> Split:
    """scikit-learn's 1,797 digits, [B, 1, 8, 8] in [-1, 1]; every third one is for the test.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    found = import_extra("sklearn.datasets", "scikit-learn", "data.name = 'digits'").load_digits()
    pixels = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    images = Images(pixels, torch.tensor(found.target))
    held_out = torch.arange(len(images)) % 3 == 0
    return Split(images.at(~held_out), images.at(held_out))
