"""Which examples each seed trains on, is validated with and tested with, and in which order."""

import gzip
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from aimgraph.errors import ConfigError
from aimgraph.experiment import drawing, made
from aimgraph.experiment.data import Parts, examples, order_of
from aimgraph.experiment.digits import digits
from aimgraph.experiment.drawing import Drawn, in_rounds, order_of_tests
from aimgraph.experiment.idx import idx_split
from aimgraph.experiment.images import ByteImages, Examples, Images
from aimgraph.experiment.recipe import Data
from aimgraph.experiment.sizes import resized

DIGITS = Data(name="digits", train=96, validation=50, test=60)


def pixels(part: Examples) -> Tensor:
    return part.at(torch.arange(len(part))).pixels


def rows(part: Examples) -> list[tuple[float, ...]]:
    return [tuple(image.flatten().tolist()) for image in pixels(part)]


def same(one: Examples, other: Examples) -> bool:
    return torch.equal(pixels(one), pixels(other)) and torch.equal(one.labels, other.labels)


def test_parts_are_apart_and_repeat() -> None:
    parts, again = examples(DIGITS, 3), examples(DIGITS, 3)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (96, 50, 60)
    assert len({*rows(parts.train), *rows(parts.validation), *rows(parts.test)}) == 206
    assert all(same(getattr(parts, name), getattr(again, name)) for name in ("train", "validation", "test"))


def test_a_seed_draws_all_but_the_test() -> None:
    zero, one = examples(DIGITS), examples(DIGITS, 1)
    assert set(rows(zero.train)) != set(rows(one.train))
    assert set(rows(zero.validation)) != set(rows(one.validation))
    assert same(zero.test, one.test)
    assert same(zero.test, digits().test.at(torch.arange(60)))  # digits are mixed already


def test_the_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    torch.manual_seed(5)
    one = examples(DIGITS, 1)
    torch.manual_seed(6)
    assert same(one.train, examples(DIGITS, 1).train)
    torch.set_rng_state(before)
    examples(Data(name="position", train=4, validation=4, test=4, pattern=1.0))
    order_of(10, DIGITS, 0, 0, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_everything_is_taken_where_nobody_says_how_many() -> None:
    parts = examples(Data(name="digits", validation=98))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (1100, 98, 599)
    assert len({*rows(parts.train), *rows(parts.validation)}) == len({*rows(digits().train)})


@pytest.mark.parametrize(("train", "each"), [(50, {5}), (96, {9, 10}), (7, {1})])
@pytest.mark.parametrize("seed", [0, 1])
def test_small_parts_have_as_many_of_each_class(train: int, each: set[int], seed: int) -> None:
    labels = examples(Data(name="digits", train=train), seed).train.labels
    assert set(Counter(labels.tolist()).values()) == each
    assert len(labels) == train


def test_fewer_examples_are_among_more() -> None:
    few, many = (examples(Data(name="digits", train=count), 2) for count in (50, 400))
    assert {*rows(few.train)} < {*rows(many.train)}
    assert same(few.validation, many.validation)


def test_rounds_go_on_with_the_classes_that_have_some_left() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 2, 2])
    order = torch.tensor([7, 0, 1, 5, 2, 3, 6, 4])
    assert in_rounds(order, labels).tolist() == [7, 0, 5, 1, 6, 2, 3, 4]
    assert in_rounds(order[:2], labels).tolist() == [7, 0]


@pytest.mark.parametrize("labels", [torch.zeros(4, 1), torch.zeros(4), torch.zeros(4, 2, 2, dtype=torch.int64)])
def test_only_classes_are_taken_in_rounds(labels: Tensor) -> None:
    order = torch.tensor([3, 1, 0, 2])
    assert in_rounds(order, labels) is order
    assert order_of_tests(labels).tolist() == [0, 1, 2, 3]


def test_the_test_is_mixed_where_classes_lie_in_blocks() -> None:
    blocks, mixed = torch.tensor([1] * 30 + [0] * 30), torch.tensor([0, 1, 0, 1])
    assert len(blocks[order_of_tests(blocks)[:20]].unique()) == 2
    assert sorted(order_of_tests(blocks).tolist()) == list(range(60))
    assert torch.equal(order_of_tests(blocks), order_of_tests(blocks))
    assert order_of_tests(mixed).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": 2000}, r"data.train=2000 and data.validation=200: digits has 1198 to train on: ask for fewer"),
        ({"validation": 1198}, r"^data.validation=1198: digits has 1198 to train on"),
        ({"test": 600}, r"data.test=600: digits has 599: set data.test to 599 or fewer"),
    ],
)
def test_more_than_there_are(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        examples(Data(name="digits", **changed))
    assert len(examples(Data(name="digits", train=1198 - 200)).train) == 998


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"needs scikit-learn, .*: pip install 'aimgraph\[experiment\]'"):
        examples(DIGITS)


# made by rules


def test_made_examples_come_from_the_seed_and_their_test_does_not() -> None:
    data = Data(name="position", train=10, validation=4, test=6)
    zero, again, one = examples(data), examples(data), examples(data, 1)
    assert [len(part) for part in (zero.train, zero.validation, zero.test)] == [10, 4, 6]
    assert same(zero.train, again.train)
    assert not {*rows(zero.train), *rows(zero.validation)} & {*rows(one.train), *rows(one.validation)}
    assert same(zero.test, one.test)
    assert not {*rows(zero.test)} & {*rows(zero.train)}


def test_how_many_are_made_where_nobody_says() -> None:
    parts = examples(Data(name="position"))
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [4096, 200, 1024]


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Data:
    """Numbers that go up by one from where the seed begins."""

    def make(count: int, generator: Generator) -> Images:
        begin = float(torch.randint(10**6, (), generator=generator))
        values = begin + torch.arange(count)
        return Images(values[:, None, None, None], values[:, None])

    monkeypatch.setitem(made.MADE, "drift", make)
    monkeypatch.setattr(made, "STREAMS", frozenset({"drift"}))
    return Data(name="drift", train=7, validation=3, test=4)


def test_a_stream_goes_on_from_part_to_part(stream: Data) -> None:
    def values(parts: Parts) -> list[float]:
        return [*parts.train.labels.flatten(), *parts.validation.labels.flatten(), *parts.test.labels.flatten()]

    found = values(examples(stream, 1))
    assert found == [found[0] + place for place in range(14)]
    assert found == values(examples(stream, 1))
    assert found[0] != values(examples(stream, 2))[0]
    assert [len(part) for part in vars(examples(stream)).values()] == [7, 3, 4]


# order


def test_an_epoch_shows_each_example_once_in_whole_batches() -> None:
    batches = order_of(23, DIGITS, 0, 0, 5)
    assert [len(batch) for batch in batches] == [5] * 4
    assert len({*torch.cat(batches).tolist()}) == 20
    assert all(torch.equal(one, other) for one, other in zip(batches, order_of(23, DIGITS, 0, 0, 5), strict=True))


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1)])
def test_seed_and_epoch_mix(seed: int, epoch: int) -> None:
    assert not torch.equal(order_of(20, DIGITS, 0, 0, 20)[0], order_of(20, DIGITS, seed, epoch, 20)[0])


@pytest.mark.parametrize("count", [5, 64])
def test_fewer_examples_than_a_batch_are_one(count: int) -> None:
    (batch,) = order_of(count, DIGITS, 0, 0, 64)
    assert sorted(batch.tolist()) == list(range(count))


@pytest.mark.parametrize(("count", "wanted"), [(7, [[0, 1, 2], [3, 4, 5]]), (6, [[0, 1, 2], [3, 4, 5]]), (2, [[0, 1]])])
def test_a_stream_is_in_order(count: int, wanted: list[list[int]], stream: Data) -> None:
    for epoch in range(2):
        assert [batch.tolist() for batch in order_of(count, stream, 3, epoch, 3)] == wanted


# what is done to images


def test_a_side_is_given_to_images_in_memory() -> None:
    small = examples(Data(name="position", train=10, validation=4, test=6))
    parts = examples(Data(name="position", train=10, validation=4, test=6, side=32))
    assert {tuple(pixels(part).shape[1:]) for part in vars(parts).values()} == {(3, 32, 32)}
    wanted = torch.nn.functional.interpolate(pixels(small.test), size=(32, 32), mode="bilinear")
    torch.testing.assert_close(pixels(parts.test), wanted.expand(-1, 3, -1, -1))


def test_the_longer_side_is_cut() -> None:
    ramp = torch.arange(12.0).expand(1, 3, 4, 12)
    kept = resized(Images(ramp, torch.zeros(1)), 4).pixels
    assert torch.equal(kept, ramp[:, :, :, 4:8])
    assert torch.equal(resized(Images(ramp.mT, torch.zeros(1)), 4).pixels, kept.mT)
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64)
    assert (resized(Images(stripes, torch.zeros(1)), 8).pixels - 0.5).abs().max() < 0.05  # antialiased
    assert resized(Images(torch.zeros(2, 3, 5, 7), torch.zeros(2)), 3).pixels.shape == (2, 3, 3, 3)


def test_labels_for_pixels_are_not_resized() -> None:
    with pytest.raises(ConfigError, match=r"data.side=4: labels, \[1, 8, 8\], are for pixels: leave `side` out"):
        resized(Images(torch.zeros(1, 1, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)), 4)


@pytest.mark.parametrize("side", [None, 12])
def test_a_pattern_is_that_of_the_seed_in_all_parts(side: int | None) -> None:
    def patterns(seed: int) -> list[Tensor]:
        plain, behind = (examples(DIGITS.model_copy(update={"side": side, "pattern": p}), seed) for p in (None, 0.5))
        pairs = zip(vars(plain).values(), vars(behind).values(), strict=True)
        return [pixels(other) - pixels(one) for one, other in pairs]

    found = patterns(1)
    for part in found:
        torch.testing.assert_close(part, found[0][:1].expand_as(part), atol=1e-5, rtol=0)
    assert 0.35 < float(found[0][0].std()) < 0.65
    assert float((found[0][0] - patterns(2)[0][0]).std()) > 0.35


def test_large_parts_are_made_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DIGITS.model_copy(update={"side": 12, "pattern": 0.5})
    kept = examples(data)
    monkeypatch.setattr(drawing, "KEPT", 50 * 3 * 12 * 12 * 4)
    parts = examples(data)
    assert isinstance(kept.train, Images)
    assert isinstance(parts.validation, Images)
    assert isinstance(parts.train, Drawn)
    assert len(parts.train) == 96
    assert same(parts.train, kept.train)
    index = torch.tensor([7, 2, 7])
    assert torch.equal(parts.train.at(index).pixels, kept.train.at(index).pixels)
    assert torch.equal(parts.train.at(index).labels, kept.train.labels[index])


# IDX files


def idx(values: list[int], *shape: int) -> bytes:
    return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(values)


def write(folder: Path, name: Callable[[str, str], str] = "{}-{}-ubyte".format, pack: bool = False) -> None:
    for part, count in (("train", 30), ("t10k", 8)):
        images = idx([place % 256 for place in range(count * 12)], count, 4, 3)
        for what, content in (("images-idx3", images), ("labels-idx1", idx([n % 7 for n in range(count)], count))):
            (folder / name(part, what)).write_bytes(gzip.compress(content, mtime=0) if pack else content)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("{}-{}-ubyte.gz", True),
        ("{}-{}-ubyte", False),
        ("{}-{}-ubyte.gz", False),  # some browsers unzip and keep the name
        (lambda part, what: f"{part}-{what.replace('-', '.')}-ubyte", False),
        (lambda part, what: f"{part}-{what.replace('-', '.')}-ubyte.gz", True),
    ],
)
def test_idx_files_under_all_names(name: Any, pack: bool, tmp_path: Path) -> None:
    write(tmp_path, name if callable(name) else name.format, pack)
    parts = examples(Data(name="idx", folder=str(tmp_path), validation=5))
    assert pixels(parts.train).shape == (25, 1, 4, 3)
    assert parts.test.labels.tolist() == [place % 7 for place in range(8)]
    assert parts.test.labels.dtype == torch.int64
    wanted = torch.arange(8 * 12).reshape(8, 1, 4, 3) / 127.5 - 1
    torch.testing.assert_close(pixels(parts.test), wanted, atol=1e-6, rtol=0)


def test_images_of_bytes_are_floats_when_asked_for() -> None:
    images = ByteImages(torch.tensor([0, 255, 51], dtype=torch.uint8)[:, None, None, None], torch.arange(3))
    assert len(images) == 3
    taken = images.at(torch.tensor([1, 0]))
    assert (taken.pixels.flatten().tolist(), taken.labels.tolist()) == ([1.0, -1.0], [1, 0])


def test_missing_idx_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data.folder: .* does not hold train-images-idx3-ubyte.gz.*apt-get install dataset-fashion"
    ):
        examples(Data(name="idx", folder=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t10k-images-idx3", b"<html>", r"no IDX file of bytes with 3 dimensions: it begins with 3c 68 74 6d"),
        ("t10k-labels-idx1", idx([0] * 8, 8, 1, 1), r"no IDX file of bytes with 1 dimensions: .* 00 00 08 03, and not"),
        ("train-images-idx3", idx([0] * 11, 1, 4, 3), r"holds 27 bytes and not 28 as its header says \(\[1, 4, 3\]\)"),
        ("train-images-idx3", idx([0] * 13, 1, 4, 3), r"holds 29 bytes and not 28"),
        ("train-images-idx3", idx([], 1, 4, 3)[:9], r"holds 9 bytes and not a whole header: fetch it again"),
        ("train-labels-idx1", idx([], 0), r"is empty: its header says \[0\]"),
        ("train-labels-idx1", gzip.compress(idx([0] * 99, 99), mtime=0)[:-9], r"can't be read \(.*\): fetch it again"),
        ("train-labels-idx1", b"\x1f\x8b nothing", r"can't be read \(.*\): fetch it again"),
        ("train-labels-idx1", idx([0] * 29, 29), r"holds 30 images, .*train-labels-idx1-ubyte 29 labels"),
        ("train-images-idx3", idx([0] * 60, 30, 2, 1), r"have 2 x 1 and 4 x 3 pixels: take files of one set"),
    ],
    ids=range(10),
)
def test_wrong_idx_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / f"{name}-ubyte"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        idx_split(tmp_path)
    assert "pixels" in message or str(path) in str(caught.value)
