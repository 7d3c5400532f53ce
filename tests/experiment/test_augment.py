"""Training images that are changed at random."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from aimgraph.errors import ConfigError
from aimgraph.experiment.augment import augmented
from aimgraph.experiment.images import Images
from aimgraph.experiment.recipe import Augmentation

ALL = {"flip": True, "rotation": 0.15, "translation": 0.1, "contrast": 0.1}


def batch(count: int, height: int = 8, width: int = 8) -> Images:
    pixels = torch.randn(count, 3, height, width, generator=Generator().manual_seed(1))
    return Images(pixels, torch.arange(count))


def changed(images: Images, seed: int = 0, **how: Any) -> Tensor:
    found = augmented(images, Augmentation(**how), Generator().manual_seed(seed))
    assert torch.equal(found.labels, images.labels)
    assert (found.pixels.shape, found.pixels.dtype) == (images.pixels.shape, images.pixels.dtype)
    return found.pixels


def test_nothing_to_do_gives_the_same_object() -> None:
    images, generator = batch(2), Generator().manual_seed(3)
    before = generator.get_state()
    assert augmented(images, Augmentation(), generator) is images
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("how", [{name: value} for name, value in ALL.items()] + [ALL])
def test_all_that_is_random_comes_from_the_generator(how: dict[str, Any]) -> None:
    images, state = batch(16), torch.get_rng_state()
    before = images.pixels.clone()
    assert torch.equal(changed(images, **how), changed(images, **how))
    assert not torch.equal(changed(images, **how), changed(images, 1, **how))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images.pixels, before)


def test_half_of_the_images_are_mirrored() -> None:
    images = batch(400)
    found = changed(images, flip=True)
    kept = (found == images.pixels).all((1, 2, 3))
    mirrored = (found == images.pixels.flip(-1)).all((1, 2, 3))
    assert bool((kept ^ mirrored).all())
    assert 160 < int(mirrored.sum()) < 240


@pytest.mark.parametrize("contrast", [0.1, 1.0])
def test_contrast_scales_differences_from_the_mean_of_each_channel(contrast: float) -> None:
    images = batch(400)
    found = changed(images, contrast=contrast)
    torch.testing.assert_close(found.mean((2, 3)), images.pixels.mean((2, 3)))
    factor = found.std((2, 3)) / images.pixels.std((2, 3))
    torch.testing.assert_close(factor, factor[:, :1].expand(-1, 3))
    low, high = factor.aminmax()
    assert 1 - contrast - 1e-4 <= float(low) < 1 - 0.95 * contrast
    assert 1 + 0.95 * contrast < float(high) <= 1 + contrast + 1e-4


def coordinates(count: int, height: int, width: int) -> Images:
    """Images whose two channels are places, in pixels from the centre: x, y."""
    y, x = torch.meshgrid(torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij")
    return Images(torch.stack([x, y]).expand(count, -1, -1, -1), torch.zeros(count))


@pytest.mark.parametrize(("height", "width"), [(20, 20), (12, 30)])
def test_translation_moves_by_up_to_a_share_of_each_side(height: int, width: int) -> None:
    images = coordinates(500, height, width)
    gone = (images.pixels - changed(images, translation=0.2))[:, :, height // 2 - 1 : height // 2 + 1, width // 2]
    torch.testing.assert_close(gone[..., 0], gone[..., 1], atol=1e-4, rtol=0)
    for axis, side in enumerate((width, height)):
        shift = gone[:, axis, 0]
        assert 0.19 * side < float(shift.max()) <= 0.2 * side + 1e-3
        assert -0.2 * side - 1e-3 <= float(shift.min()) < -0.19 * side
        assert abs(float(shift.mean())) < 0.02 * side


@pytest.mark.parametrize(("height", "width"), [(20, 20), (12, 30)])
def test_rotation_turns_about_the_centre_and_keeps_lengths(height: int, width: int) -> None:
    images = coordinates(500, height, width)
    middle = (slice(None), slice(None), slice(height // 2 - 2, height // 2 + 2), slice(width // 2 - 2, width // 2 + 2))
    here, there = images.pixels[middle], changed(images, rotation=0.15)[middle]
    torch.testing.assert_close(here.square().sum(1), there.square().sum(1), atol=1e-3, rtol=1e-3)
    (x, y), (u, v) = here.unbind(1), there.unbind(1)
    turns = torch.atan2(x * v - y * u, x * u + y * v).flatten(1) / (2 * torch.pi)
    torch.testing.assert_close(turns, turns[:, :1].expand_as(turns), atol=1e-4, rtol=0)
    assert 0.145 < float(turns.max()) <= 0.1501
    assert -0.1501 <= float(turns.min()) < -0.145


def test_what_comes_from_outside_is_a_reflection() -> None:
    ones = Images(torch.ones(50, 1, 8, 8), torch.zeros(50))
    torch.testing.assert_close(changed(ones, rotation=0.5, translation=0.5), ones.pixels)
    columns = Images(torch.arange(4.0).expand(200, 1, 4, 4), torch.zeros(200))
    by_two = changed(columns, translation=0.5)[:, 0, 0]
    shift = columns.pixels[:, 0, 0, 2] - by_two[:, 2]
    right = shift > 1
    assert int(right.sum()) > 20
    torch.testing.assert_close(by_two[right, 0], shift[right] - 1, atol=1e-4, rtol=0)  # with zeros it would be 0


@pytest.mark.parametrize("how", [{"flip": True}, {"rotation": 0.1}, {"translation": 0.1}])
def test_labels_for_pixels_can_not_be_moved(how: dict[str, Any]) -> None:
    images = Images(torch.randn(2, 1, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"augmentation: .* leave the labels, \[2, 4, 4\], .*: set contrast alone"):
        changed(images, **how)
    assert not torch.equal(changed(images, contrast=0.5), images.pixels)


def test_numbers_to_be_learned_stay() -> None:
    images = Images(torch.randn(2, 1, 4, 4), torch.randn(2, 1))
    assert not torch.equal(changed(images, rotation=0.3), images.pixels)
