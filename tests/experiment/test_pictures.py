"""Folders of pictures, and Stanford Dogs: which files are taken for what, and what becomes of their pixels."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch import Tensor

from aimgraph.errors import ConfigError
from aimgraph.experiment import pictures
from aimgraph.experiment.data import Parts, examples
from aimgraph.experiment.folders import picture_folders
from aimgraph.experiment.images import Images
from aimgraph.experiment.pictures import Pictures, decode
from aimgraph.experiment.recipe import Data

SIDE = 8


def save(path: Path, value: int = 0, size: tuple[int, int] = (10, SIDE)) -> Path:
    """A grey picture, (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def tree(folder: Path, *parts: str, classes: Sequence[str] = ("ant", "bee"), count: int = 6) -> Path:
    """Pictures a class and part; no two have the same value."""
    value = 0
    for part in parts or ("",):
        for name in classes:
            for place in range(count):
                save(folder / part / name / f"{place}.png", value)
                value += 1
    return folder


def values(part: Any) -> list[int]:
    """The values of one colour that pictures have."""
    found: Images = part.at(torch.arange(len(part)))
    return [round((float(one) + 1) * 127.5) for one in found.pixels.mean((1, 2, 3))]


def images(folder: Path, seed: int = 0, **counts: int) -> Parts:
    return examples(Data(name="images", folder=str(folder), side=SIDE, **{"validation": 2, **counts}), seed)


# which files


def test_a_third_of_each_class_is_the_test(tmp_path: Path) -> None:
    parts, other = images(tree(tmp_path, count=7)), images(tmp_path, seed=1)
    found = [values(part) for part in vars(parts).values()]
    assert [len(part) for part in found] == [10 - 2, 2, 4]
    assert sorted([*found[0], *found[1], *found[2]]) == list(range(14))
    assert Counter(parts.test.labels.tolist()) == {0: 2, 1: 2}
    assert [value // 7 for value in found[2]] == parts.test.labels.tolist()
    assert values(other.test) == found[2]
    assert set(values(other.validation)) != set(found[1])
    held = set(found[2])
    tree(tmp_path / "more", classes=("ant", "ape", "bee"), count=7)
    more = picture_folders(tmp_path / "more", SIDE).test
    assert {value % 7 for value in values(more) if value < 7} == {value for value in held if value < 7}


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_named_parts(validation: str, tmp_path: Path) -> None:
    """Parts hold 12 pictures each, whose values go on from part to part."""
    three = images(tree(tmp_path / "three", "train", "test", validation), validation=5)
    assert sorted(values(three.train)) == list(range(12))
    assert sorted(values(three.test)) == list(range(12, 24))
    assert len(set(values(three.validation)) & set(range(24, 36))) == 5
    assert values(images(tmp_path / "three", 1, validation=5).validation) != values(three.validation)
    two = images(tree(tmp_path / "two", "train", validation))
    assert sorted(values(two.train) + values(two.validation)) == list(range(12))
    assert sorted(values(two.test)) == list(range(12, 24))


def test_a_test_part_alone_and_names_in_any_case(tmp_path: Path) -> None:
    parts = images(tree(tmp_path, "Train", "TEST"))
    assert sorted(values(parts.test)) == list(range(12, 24))
    assert (len(parts.train), len(parts.validation)) == (10, 2)


@pytest.mark.parametrize("names", [("train", "boat"), ("test", "boat"), ("val", "test")])
def test_a_class_may_be_called_as_a_part_is(names: tuple[str, str], tmp_path: Path) -> None:
    parts = images(tree(tmp_path, classes=names))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (6, 2, 4)


def test_nested_folders_endings_and_what_is_no_picture(tmp_path: Path) -> None:
    names = ["a.PNG", "b.jpg", "deep/er/c.JPeG", "d.bmp", "e.webp", "f.ppm", "deep/g.pgm", "h.tif", "i.TIFF"]
    for name in names:
        save(tmp_path / "ant" / name)
    for name in ("._a.png", ".hidden/b.png", "notes.txt", "c.png.part"):
        path = tmp_path / "ant" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no picture")
    save(tmp_path / "bee" / "a.png")
    (tmp_path / ".cache").mkdir()
    save(tmp_path / "beside.png")
    split = picture_folders(tmp_path, SIDE)
    found = [path for part in (split.train, split.test) if isinstance(part, Pictures) for path in part.paths]
    wanted = [tmp_path / "ant" / name for name in names] + [tmp_path / "bee" / "a.png"]
    assert sorted(found) == sorted(wanted)
    assert split.train.at(torch.arange(len(split.train))).pixels.shape == (7, 3, SIDE, SIDE)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_class_of_few_keeps_one_to_train_on(count: int, tmp_path: Path) -> None:
    split = picture_folders(tree(tmp_path, classes=("few",), count=count) if count > 1 else _with_one(tmp_path), SIDE)
    few = [int((part.labels == part.labels.max()).sum()) for part in (split.train, split.test)]
    assert few == {1: [1, 3], 2: [1, 1], 3: [2, 1], 5: [3, 2]}[count]


def _with_one(folder: Path) -> Path:
    """Nine of one class, and one of the other."""
    save(folder / "one" / "a.png")
    return tree(folder, classes=("many",), count=9)


def test_a_small_part_has_as_many_of_each_class(tmp_path: Path) -> None:
    folder = tree(tmp_path, classes=("a", "b", "c"), count=9)
    parts = images(folder, train=6, test=4)
    assert Counter(parts.train.labels.tolist()) == {0: 2, 1: 2, 2: 2}
    assert len(parts.test.labels.unique()) > 1  # mixed, though files are sorted by class
    assert values(parts.test) == values(images(folder, seed=1, train=6, test=4).test)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"folder": "here"}, r"data.side is missing: pictures in here may have any size; set it .* data.side = 224"),
        ({"side": 8}, r"data.folder is missing: for data.name = '{name}' it is where the pictures are"),
    ],
)
@pytest.mark.parametrize("name", ["images", "dogs"])
def test_what_pictures_need(name: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.format(name=name)):
        examples(Data(name=name, **given))


def test_folders_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere is no folder: give one with a folder of pictures for each class"):
        images(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"holds no folders: put the pictures of each class into one of its own"):
        images(tmp_path)
    (tree(tmp_path / "some") / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no pictures \(.png, .*\) lie below empty: take these away"):
        images(tmp_path / "some")
    with pytest.raises(ConfigError, match=r"holds val and valid: keep one of them"):
        images(tree(tmp_path / "both", "train", "val", "valid"))
    with pytest.raises(ConfigError, match=r"no class has the two pictures that a test takes"):
        images(tree(tmp_path / "single", count=1))
    with pytest.raises(ConfigError, match=r"data.validation=13: images in .* has 12: set data.validation to 12"):
        images(tree(tmp_path / "three", "train", "test", "val"), validation=13)


def test_classes_that_differ_are_named(tmp_path: Path) -> None:
    tree(tmp_path, "train", classes=("ant", "bee", "cat"))
    tree(tmp_path, "test", classes=("ant", "dog"))
    with pytest.raises(
        ConfigError, match=r"train/ and test/ have to .* classes.*only train/ has bee, cat; only test/ has dog"
    ):
        images(tmp_path)
    many = tree(tmp_path / "many", "train", classes=[f"c{place}" for place in range(8)], count=1)
    tree(many, "val", classes=("c0",))
    with pytest.raises(ConfigError, match=r"train/ and val/ .*: only train/ has c1, c2, c3, c4, c5 and 2 more$"):
        images(many)


# pixels


def opened(path: Path) -> Tensor:
    """The mean of each channel, 0 to 255."""
    return decode(path, SIDE).float().mean((1, 2))


@pytest.mark.parametrize(
    ("mode", "colour", "ending", "wanted"),
    [
        ("L", 90, "png", (90, 90, 90)),
        ("1", 1, "png", (255, 255, 255)),
        ("LA", (90, 10), "png", (90, 90, 90)),
        ("RGB", (200, 100, 50), "png", (200, 100, 50)),
        ("RGBA", (200, 100, 50, 128), "png", (200, 100, 50)),
        ("CMYK", (0, 255, 255, 0), "jpg", (254, 0, 0)),
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
        ("I;16", 51 * 257, "png", (51, 51, 51)),
        ("I;16", 65535, "tif", (255, 255, 255)),
        ("I;16", 51 * 257, "pgm", (51, 51, 51)),
        ("I", 51 * 257, "tif", (51, 51, 51)),
    ],
)
def test_pictures_of_all_kinds_have_three_channels(
    mode: str, colour: Any, ending: str, wanted: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / f"one.{ending}"
    Image.new(mode, (20, 12), colour).save(path)
    found = decode(path, SIDE)
    assert (found.dtype, found.shape) == (torch.uint8, (3, SIDE, SIDE))
    torch.testing.assert_close(opened(path), torch.tensor(wanted).float(), atol=2.0, rtol=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparent", [None, 0, b"\x00\x80"])
def test_palettes(transparent: int | bytes | None, tmp_path: Path) -> None:
    image = Image.new("P", (12, 12), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "one.png", **({} if transparent is None else {"transparency": transparent}))
    assert opened(tmp_path / "one.png").tolist() == [200, 100, 50]


def test_a_picture_of_16_bits_keeps_its_shades(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    Image.fromarray(ramp).save(tmp_path / "one.png")
    found = decode(tmp_path / "one.png", SIDE)[0].double()
    assert (found - torch.from_numpy(ramp / 257.0)).abs().max() <= 0.5


@pytest.mark.parametrize(("mode", "value"), [("I", 70_000), ("I", -1), ("F", 0.5)])
def test_pixels_without_a_known_range_are_refused(mode: str, value: float, tmp_path: Path) -> None:
    Image.new(mode, (4, 4), value).save(tmp_path / "one.tif")
    with pytest.raises(ConfigError, match=r"one.tif is no picture that can be read \(.*save it with 8 or 16 bits"):
        decode(tmp_path / "one.tif", SIDE)


def test_exif_turns_a_picture(tmp_path: Path) -> None:
    left_is_white = Image.new("L", (16, 16))
    left_is_white.paste(255, (0, 0, 8, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees, clockwise
    left_is_white.save(tmp_path / "one.jpg", exif=exif, quality=100)
    found = decode(tmp_path / "one.jpg", 16)[0].float()
    assert found[:7].mean() > 250
    assert found[9:].mean() < 5


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_is_kept_and_nothing_is_squeezed(turned: bool, tmp_path: Path) -> None:
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = np.arange(16) * 16
    Image.fromarray(wide.T if turned else wide).save(tmp_path / "one.png")
    found = decode(tmp_path / "one.png", 16)[0]
    assert torch.equal(found, torch.from_numpy(wide[:, 16:32].T.copy() if turned else wide[:, 16:32].copy()))


def test_pictures_are_antialiased(tmp_path: Path) -> None:
    Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32))).save(tmp_path / "stripes.png")
    assert (decode(tmp_path / "stripes.png", SIDE).float() - 127.5).abs().max() < 12


def test_a_large_jpeg_that_is_decoded_at_a_fourth_shows_the_same(tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 640)[None] * np.ones((480, 1))
    Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / "one.jpg", quality=95)
    Image.open(tmp_path / "one.jpg").save(tmp_path / "one.png")
    jpeg, png = (decode(tmp_path / name, 32).int() for name in ("one.jpg", "one.png"))
    assert (jpeg - png).abs().max() <= 2


@pytest.mark.parametrize("broken", ["cut", "text", "empty", "gone"])
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_broken_picture_is_named(broken: str, ending: str, tmp_path: Path) -> None:
    folder = tree(tmp_path, count=5)
    path = folder / "ant" / f"5.{ending}"
    Image.effect_noise((40, 40), 80).save(path)
    path.write_bytes({"cut": path.read_bytes()[:-300], "text": b"no picture", "empty": b""}.get(broken, b""))
    split = picture_folders(folder, SIDE)
    if broken == "gone":
        path.unlink()
    with pytest.raises(ConfigError, match=rf"5.{ending} is no picture that can be read \(.*\): repair it or take it"):
        [part.at(torch.arange(len(part))) for part in (split.train, split.test)]


def test_pictures_come_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    train = images(tree(tmp_path)).train
    index = torch.tensor([3, 0, 3, 5])
    batch = train.at(index)
    assert batch.pixels.shape == (4, 3, SIDE, SIDE)
    assert values(batch) == [values(train)[place] for place in index]
    assert torch.equal(batch.labels, train.labels[index])
    assert float(batch.pixels.min()) >= -1


@pytest.mark.parametrize("room", [0, 4 * 3 * SIDE**2, 2**20])
def test_pictures_are_decoded_once_while_there_is_room(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [save(tmp_path / f"{place}.png", place) for place in range(6)]
    some, seen = Pictures(paths, torch.arange(6), SIDE), list[Path]()
    monkeypatch.setattr(pictures, "ROOM", room)
    monkeypatch.setattr(pictures, "decode", lambda path, side: seen.append(path) or decode(path, side))
    assert [values(some) for _ in range(3)] == [list(range(6))] * 3
    kept = min(6, room // (3 * SIDE**2))
    assert len(some.kept) == kept
    assert len(seen) == kept + 3 * (6 - kept)


def test_how_many_threads_decode_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(tmp_path / f"{place}.png", place) for place in range(20)]
    found = []
    for threads in (1, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(values(Pictures(paths, torch.arange(20), SIDE)))
    assert found == [list(range(20))] * 2


def test_pillow_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = picture_folders(tree(tmp_path), SIDE)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigError, match=r"needs Pillow, .*: pip install 'aimgraph\[experiment\]'"):
        split.train.at(torch.arange(1))


def test_pictures_behind_a_pattern(tmp_path: Path) -> None:
    folder = str(tree(tmp_path))
    plain, behind = (
        examples(Data(name="images", folder=folder, side=SIDE, validation=2, pattern=one), 1) for one in (None, 0.3)
    )
    pattern = behind.test.at(torch.arange(2)).pixels - plain.test.at(torch.arange(2)).pixels
    torch.testing.assert_close(pattern[0], pattern[1])
    assert 0.2 < float(pattern.std()) < 0.4


# Stanford Dogs

BREEDS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02085936-Maltese_dog")


def cells(names: Sequence[str]) -> np.ndarray:
    """A cell array, N x 1."""
    found = np.empty((len(names), 1), dtype=object)
    found[:, 0] = names
    return found


def dogs(folder: Path, lists: str = "lists") -> Path:
    """Four dogs of each breed to train on and two to test with, in JPEG files."""
    (folder / lists).mkdir(parents=True, exist_ok=True)
    for part, places in (("train", range(4)), ("test", range(4, 6))):
        names = [f"{breed}/{breed[:9]}_{place}.jpg" for breed in BREEDS for place in places]
        labels = [[BREEDS.index(name.partition("/")[0]) + 1] for name in names]
        for place, name in enumerate(names):
            save(folder / "Images" / name, 40 * labels[place][0], (30, 20))
        content = {"file_list": cells(names), "annotation_list": cells(names), "labels": np.array(labels, np.uint8)}
        scipy.io.savemat(folder / lists / f"{part}_list.mat", content)
    return folder


def dog_parts(folder: Path, **counts: int) -> Parts:
    return examples(Data(name="dogs", folder=str(folder), side=SIDE, validation=3, **counts))


@pytest.mark.parametrize("lists", ["lists", "."])
def test_dogs_are_those_of_the_lists(lists: str, tmp_path: Path) -> None:
    save(tmp_path / "Images" / BREEDS[0] / "in_no_list.jpg")
    parts = dog_parts(dogs(tmp_path, lists))
    assert [len(part) for part in vars(parts).values()] == [9, 3, 6]
    assert parts.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    for part in vars(parts).values():
        wanted = 40.0 * (part.labels + 1)
        torch.testing.assert_close(torch.tensor(values(part)).float(), wanted, atol=2.0, rtol=0)
    few = dog_parts(tmp_path, train=3, test=4)
    assert sorted(few.train.labels.tolist()) == [0, 1, 2]
    assert few.test.labels.tolist() != sorted(few.test.labels.tolist())


@pytest.mark.parametrize("gone", ["Images", "lists/test_list.mat", f"Images/{BREEDS[1]}/n02085782_5.jpg"])
def test_missing_dogs_are_told_where_to_get(gone: str, tmp_path: Path) -> None:
    path = dogs(tmp_path) / gone
    path.rename(tmp_path / "moved")
    with pytest.raises(ConfigError) as caught:
        dog_parts(tmp_path)
    told = str(caught.value)
    assert f"{tmp_path} does not hold {gone}" in told
    assert "images.tar and lists.tar from http://vision.stanford.edu/aditya86/ImageNetDogs/" in told
    assert f"tar -xf lists.tar -C {tmp_path}/lists" in told
    assert ("1 of 6 pictures are not there" in told) == gone.endswith("jpg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"train_list.mat is no list of Stanford Dogs \(.*\): fetch it again"),
        ({"labels": np.ones((1, 1))}, r"is no list of Stanford Dogs \(KeyError\('file_list'\)\)"),
        ({"file_list": cells(["a.jpg"]), "labels": np.ones((2, 1))}, r"it has 1 pictures and 2 labels from 1"),
        ({"file_list": cells(["a.jpg"]), "labels": np.zeros((1, 1))}, r"it has 1 pictures and 1 labels from 0"),
    ],
)
def test_a_list_that_is_none_is_named(content: dict[str, Any] | None, message: str, tmp_path: Path) -> None:
    path = dogs(tmp_path) / "lists" / "train_list.mat"
    if content is None:
        path.write_bytes(b"<html>no such page</html>" * 20)
    else:
        scipy.io.savemat(path, content)
    with pytest.raises(ConfigError, match=message):
        dog_parts(tmp_path)


def test_breeds_of_one_list_only_are_named(tmp_path: Path) -> None:
    names = [f"{breed}/{breed[:9]}_0.jpg" for breed in BREEDS[:2]]
    scipy.io.savemat(
        dogs(tmp_path) / "lists" / "train_list.mat", {"file_list": cells(names), "labels": np.array([[1], [2]])}
    )
    with pytest.raises(ConfigError, match=rf"only one of the two lists has {BREEDS[2]}$"):
        dog_parts(tmp_path)
