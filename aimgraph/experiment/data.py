"""The examples of an experiment: which ones each seed trains on, is validated with and tested with, and their order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from aimgraph.errors import ConfigError
from aimgraph.experiment import made
from aimgraph.experiment.corruption import corrupted
from aimgraph.experiment.digits import digits
from aimgraph.experiment.dogs import dogs
from aimgraph.experiment.drawing import Change, Drawn, in_rounds, order_of_tests, settled
from aimgraph.experiment.folders import picture_folders
from aimgraph.experiment.idx import FASHION_FOLDER, idx_split
from aimgraph.experiment.images import Examples, Images, Split
from aimgraph.experiment.recipe import Data
from aimgraph.experiment.sizes import resized
from aimgraph.reproducible import generator_of

TRAIN = 4096
"""Examples that are made to train on where nobody says how many; a quarter as many to test with."""


@dataclass(frozen=True)
class Parts:
    """The examples of an experiment.

    Attributes:
        train: To train on.
        validation: That rates are chosen by.
        test: Looked at once.
    """

    train: Examples
    validation: Examples
    test: Examples


def examples(data: Data, seed: int = 0) -> Parts:
    """The examples that a recipe asks for.

    The seed draws which of the examples to train on are trained on and which are validated with. Where `data.train`
    says how many and labels are classes, each class has as many as the others, give or take one, as far as there are
    examples; fewer are then among the more of the same seed. The test examples are the same for all seeds. Examples
    that are made by rules are made from the seed, all but those for the test; of a stream, all three parts are, one
    after another. The pattern of `data.pattern` is drawn from the seed, too.

    Args:
        data: Which ones, and how many.
        seed: Of the unit.

    Raises:
        ConfigError: They are not there, or fewer than asked for.
    """
    train, validation, test = _made(data, seed) if data.name in made.MADE else _taken(data, seed)
    drawn = (Drawn(one.source, one.index, _changes(data, seed)) for one in (train, validation, test))
    if data.corruption is None:
        return Parts(*map(settled, drawn))
    return Parts(*(_corrupted(one, data, seed, part) for part, one in zip(_PARTS, drawn, strict=True)))


_PARTS = ("train", "validation", "test")


def _corrupted(part: Drawn, data: Data, seed: int, name: str) -> Images:
    """A part as a stream of corrupted images, in memory."""
    whole = part.at(torch.arange(len(part)))
    return corrupted(whole, data.corruption == "coherent", generator_of(f"corrupted {name}, seed {seed}"))


def is_stream(data: Data) -> bool:
    """Whether examples come one after another, and stay so."""
    return data.corruption is not None or data.name in made.STREAMS


def order_of(examples_count: int, data: Data, seed: int, epoch: int, batch: int) -> list[Tensor]:
    """The batches of an epoch, as places of examples, int64, [batch] each.

    They are mixed by (seed, epoch) alone. Those of a stream are in order, and so are the examples in them. What is
    left for less than a batch waits for the next epoch. If there are fewer examples than a batch takes, all of them
    are the one batch.

    Args:
        examples_count: How many there are.
        data: Says whether they are a stream.
        seed: Of the unit.
        epoch: From 0.
        batch: Examples in a batch.
    """
    if is_stream(data):
        order = torch.arange(examples_count)
    else:
        order = torch.randperm(examples_count, generator=generator_of(f"order, seed {seed}, epoch {epoch}"))
    whole = examples_count // batch * batch
    return list(order[:whole].split(batch)) if whole else [order]


_Three = tuple[Drawn, Drawn, Drawn]


def _made(data: Data, seed: int) -> _Three:
    """Made by rules, for this seed."""
    make, count = made.MADE[data.name], (data.train or TRAIN) + data.validation
    test = data.test or TRAIN // 4
    ours = generator_of(f"made examples, seed {seed}")
    if data.name in made.STREAMS:
        stream = make(count + test, ours)
        return _following(stream, count - data.validation, data.validation, test)
    train, validation, _ = _following(make(count, ours), count - data.validation, data.validation, 0)
    return train, validation, _all(make(test, generator_of("made examples for the test")))


def _following(source: Examples, *counts: int) -> _Three:
    """Three parts of the source, one after another."""
    train, validation, test = torch.arange(len(source)).split(list(counts))
    return Drawn(source, train), Drawn(source, validation), Drawn(source, test)


def _all(source: Examples) -> Drawn:
    return Drawn(source, torch.arange(len(source)))


def _taken(data: Data, seed: int) -> _Three:
    """Taken from what there is, for this seed."""
    split = _SOURCES[data.name](data)
    order = _mixed(len(split.train), seed)
    if split.validation is None:
        _check_enough(data, len(order))
        validation, order = Drawn(split.train, order[: data.validation]), order[data.validation :]
    else:
        _check_count("validation", data.validation, data, len(split.validation))
        validation = Drawn(split.validation, _mixed(len(split.validation), seed)[: data.validation])
    if data.train is not None:
        _check_count("train", data.train, data, len(order))
        order = in_rounds(order, split.train.labels)[: data.train]
    test = _all(split.test)
    if data.test is not None:
        _check_count("test", data.test, data, len(split.test))
        test = Drawn(split.test, order_of_tests(split.test.labels)[: data.test])
    return Drawn(split.train, order), validation, test


def _mixed(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=generator_of(f"examples, seed {seed}"))


def _check_enough(data: Data, count: int) -> None:
    """Whether the examples to train on and those to validate with can both be taken from so many."""
    if (data.train or 1) + data.validation > count:
        asked = "" if data.train is None else f"data.train={data.train} and "
        raise ConfigError(
            f"{asked}data.validation={data.validation}: {_called(data)} has {count} to train on: ask for fewer"
        )


def _check_count(part: str, wanted: int, data: Data, count: int) -> None:
    if wanted > count:
        raise ConfigError(f"data.{part}={wanted}: {_called(data)} has {count}: set data.{part} to {count} or fewer")


def _called(data: Data) -> str:
    return data.name if data.folder is None else f"{data.name} in {data.folder}"


def _idx(data: Data) -> Split:
    return idx_split(FASHION_FOLDER if data.folder is None else Path(data.folder).expanduser())


def _in_files(data: Data, read: Callable[[Path, int], Split]) -> Split:
    """Pictures in files, which have all sizes."""
    if data.folder is None:
        raise ConfigError(f"data.folder is missing: for data.name = {data.name!r} it is where the pictures are")
    if data.side is None:
        raise ConfigError(
            f"data.side is missing: pictures in {data.folder} may have any size; set it to the pixels a side that the "
            "model takes, as data.side = 224"
        )
    return read(Path(data.folder).expanduser(), data.side)


_SOURCES: Mapping[str, Callable[[Data], Split]] = {
    "digits": lambda data: digits(),
    "idx": _idx,
    "images": partial(_in_files, read=picture_folders),
    "dogs": partial(_in_files, read=dogs),
}
"""Name -> what finds the examples that are not made by rules."""


def _changes(data: Data, seed: int) -> tuple[Change, ...]:
    """What is done to images when they are asked for."""
    sized = () if data.side is None else (partial(resized, side=data.side),)
    behind = () if data.pattern is None else (partial(_with_pattern, deviation=data.pattern, seed=seed),)
    return (*sized, *behind)


def _with_pattern(images: Images, deviation: float, seed: int) -> Images:
    """Images behind a pattern, which is added to each of them."""
    pattern = _pattern(tuple(images.pixels.shape[1:]), deviation, seed)
    return Images(images.pixels + pattern, images.labels)


@cache
def _pattern(shape: tuple[int, ...], deviation: float, seed: int) -> Tensor:
    return deviation * torch.randn(shape, generator=generator_of(f"pattern, seed {seed}"))
