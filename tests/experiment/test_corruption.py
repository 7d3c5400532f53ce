"""Streams of corrupted images."""

import pytest
import torch
from torch import Generator, Tensor

from aimgraph.experiment.corruption import KINDS, RUN, corrupted
from aimgraph.experiment.data import examples, is_stream, order_of
from aimgraph.experiment.images import Images
from aimgraph.experiment.recipe import Data

COUNT = 10 * RUN + 7


def images() -> Images:
    pixels = torch.rand(COUNT, 1, 8, 8, generator=Generator().manual_seed(1)) * 2 - 1
    return Images(pixels, torch.arange(COUNT))


def stream(coherent: bool, seed: int = 0) -> Images:
    return corrupted(images(), coherent, Generator().manual_seed(seed))


def offsets(found: Images) -> Tensor:
    return (found.pixels - images().pixels).mean((1, 2, 3))


def test_a_coherent_stream_stays_as_it_is_for_a_run() -> None:
    found = offsets(stream(coherent=True))
    steady = [run.std() < 0.15 for run in found.split(RUN)]
    assert all(steady)
    assert found.split(RUN)[0].std() < offsets(stream(coherent=False)).std() / 2


def test_both_kinds_of_streams_have_the_same_corruptions() -> None:
    for coherent in (True, False):
        means = torch.cat([offsets(stream(coherent, seed)) for seed in range(20)])
        assert (means > 0.35).float().mean() == pytest.approx(1 / len(KINDS), abs=0.08)
        assert (means < -0.35).float().mean() == pytest.approx(1 / len(KINDS), abs=0.08)


def test_images_keep_their_order_and_labels_and_are_drawn_from_the_generator_alone() -> None:
    torch.manual_seed(0)
    one = stream(coherent=True)
    assert torch.equal(one.labels, torch.arange(COUNT))
    torch.manual_seed(1)
    assert torch.equal(one.pixels, stream(coherent=True).pixels)
    assert not torch.equal(one.pixels, stream(coherent=True, seed=1).pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_each_corruption_changes_images_more_the_stronger_it_is(kind: object) -> None:
    pixels, noise = images().pixels[:8], torch.randn(8, 1, 8, 8, generator=Generator().manual_seed(2))
    assert callable(kind)
    weak, strong = (kind(pixels, torch.full((8, 1, 1, 1), strength), noise) for strength in (0.5, 1.0))
    assert weak.shape == pixels.shape
    assert 0 < (weak - pixels).abs().mean() < (strong - pixels).abs().mean()
    torch.testing.assert_close(kind(pixels, torch.zeros(8, 1, 1, 1), noise), pixels)


def test_data_in_a_stream_stay_in_order() -> None:
    data = Data(name="digits", train=100, validation=50, test=60, corruption="coherent")
    plain, parts = examples(data.model_copy(update={"corruption": None}), 3), examples(data, 3)
    for name in ("train", "validation", "test"):
        one, other = getattr(plain, name), getattr(parts, name)
        assert torch.equal(one.labels, other.labels)
        assert not torch.equal(one.at(torch.arange(50)).pixels, other.at(torch.arange(50)).pixels)
    assert is_stream(data)
    assert torch.equal(torch.cat(order_of(100, data, 3, 1, 32)), torch.arange(96))
    again = examples(data, 3)
    assert torch.equal(again.test.at(torch.arange(60)).pixels, parts.test.at(torch.arange(60)).pixels)
    assert not torch.equal(examples(data, 4).test.at(torch.arange(60)).pixels, parts.test.at(torch.arange(60)).pixels)
