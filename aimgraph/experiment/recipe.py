"""What an experiment is, as a validated file: base, data, arms, seeds and how long to train."""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aimgraph.config import AimConfig
from aimgraph.errors import ConfigError
from aimgraph.experiment.statistics import MOST_DECLARED

Count: TypeAlias = Annotated[int, Field(gt=0)]
Rate: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]

Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Part: TypeAlias = Literal["last-layer", "biases", "norms"]

Kind: TypeAlias = Literal[
    "base", "static", "update", "state", "article", "author", "features-only", "zero", "random", "coordinates",
    "bias-map", "wide", "last-layer", "biases", "norms", "values", "full", "lora",
]  # fmt: skip
"""What is trained: see `Arm`."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Part):
    """Where examples come from.

    Attributes:
        name: ``digits``: scikit-learn's 1,797 digits. ``idx``: a folder with the four IDX files of MNIST or
            Fashion-MNIST, gzipped or not. ``images``: a folder with one folder of pictures for each class, or with
            ``train/``, ``test/`` and ``val/`` that hold such folders; ``train/`` and one of the others will do, and
            without any, a third of each class is the test. ``dogs``: a folder with what is in the archives of Stanford
            Dogs, ``Images/`` and ``lists/*.mat``. Made by rules: ``position`` (which of 16 cells holds a square),
            ``switch`` (a marker says whether the image or its negative is wanted), ``drift`` (the brightness of images
            behind a slow offset), ``drift-mixed`` (the same images in a random order).
        folder: For ``idx``, by default where Debian's ``dataset-fashion-mnist`` puts them; for ``images`` and ``dogs``.
        train: Examples to train on, of each class the same number as far as there are examples; all by default, of made
            ones 4,096.
        validation: Examples that rates are chosen by, taken from those to train on, or from ``val/`` where it stands
            beside ``test/``.
        test: Examples that are looked at once; all by default, of made ones 1,024.
        side: The shorter side of images is resampled to this many pixels, and the longer one cut to it, if it is set;
            those of one channel get three. ``images`` and ``dogs`` need it.
        pattern: Standard deviation of a pattern that is added to all images, a number for each pixel and channel, one
            pattern for each seed; pixels are in [-1, 1].
        corruption: Images come in a stream, each corrupted: brighter, darker, paler, noisier or blurred. ``coherent``:
            64 in a row in the same way; ``mixed``: each in another one.
    """

    name: Literal["digits", "idx", "images", "dogs", "position", "switch", "drift", "drift-mixed"]
    folder: str | None = None
    train: Count | None = None
    validation: Count = 200
    test: Count | None = None
    side: Count | None = None
    pattern: Rate | None = None
    corruption: Literal["coherent", "mixed"] | None = None


class Augmentation(_Part):
    """How each training image is changed before each step, at random.

    Attributes:
        flip: Whether half of the images are mirrored, left to right.
        rotation: Up to this share of a whole turn, to either side, about the centre.
        translation: Up to this share of the side, along both axes.
        contrast: Differences from the mean of each channel of an image are multiplied by 1 - contrast to 1 + contrast.
    """

    flip: bool = False
    rotation: Share = 0.0
    translation: Share = 0.0
    contrast: Share = 0.0


class Prediction(_Part):
    """What the score of an arm on the test examples has to be if the experiment works as it should.

    Attributes:
        arm: Its name.
        at_least: The score of a seed.
        at_most: The same.
        share: Of the seeds for which `at_least` and `at_most` hold.
        above: An arm that the mean of paired differences is above, with its whole 95 % interval.
        verdict: Of the declared comparison of this arm.
    """

    arm: str
    at_least: float | None = None
    at_most: float | None = None
    share: Share = 1.0
    above: str | None = None
    verdict: Literal["helps", "hurts", "no effect shown"] | None = None


IMPLIED: dict[Kind, dict[str, Any]] = {
    "update": {"updates": "stages"},
    "state": {"updates": "stages", "carry": "state"},
    "article": {"updates": "stages", "carry": "state"},
    "features-only": {"updates": "stages"},
}
"""Kind of an arm -> options of its memory that it has where the arm's own don't say otherwise."""


class Arm(_Part):
    """One way to train the base.

    Attributes:
        kind: ``base``: nothing is added. A memory, by `aimgraph.transform` with `options`: ``static``; ``update``: with
            updates after each resolution; ``state``: these are carried to the next batch; ``article`` and ``author``:
            the presets of these names; ``features-only``: updates, and values that are zero; ``zero`` and ``random``: a
            static one whose values are zero, or drawn, and stay; ``coordinates``: values are places' coordinates and
            stay. ``bias-map``: a number for each place and channel of each layer that would read, and no memory.
            ``wide``: `aimgraph.widen` to the parameters that the memory of `options` adds. On a frozen base, which
            parts of it are trained in place of a memory: ``last-layer``, ``biases``, ``norms``, ``full``, ``lora``; and
            ``values``: the values of a static memory, whose read weights are drawn and stay.
        options: Of `aimgraph.AimConfig`.
        rank: Of ``lora``.
        also: Parts of a frozen base that are trained, too.
    """

    kind: Kind
    options: dict[str, Any] = Field(default_factory=dict)
    rank: Count = 8
    also: tuple[Part, ...] = ()

    @model_validator(mode="after")
    def _options_are_those_of_a_memory(self) -> "Arm":
        AimConfig(**(IMPLIED.get(self.kind, {}) | self.options))
        return self


class Recipe(_Part):
    """An experiment.

    Attributes:
        name: What its report is called.
        about: The question, in a sentence or two.
        model: The base, as for every command: ``zoo/NAME``, ``package.module:factory``, ...
        frozen: Whether the base is frozen, and only what an arm adds or names is trained.
        data: The examples.
        arms: Name -> arm.
        declared: (arm, base) of the comparisons that the experiment is for, at most three.
        predicted: What has to come out, where that is known beforehand: the experiment is a control then.
        seeds: How many, from 0. A seed draws initial weights, the memory, the examples and their order.
        tuning: How many seeds, beyond those, the rate of each arm is chosen with, by validation.
        rates: Learning rates to choose from, the same for all arms.
        epochs: Passes over the data.
        seconds: In place of `epochs`: how long each arm is trained, in whole epochs, of the length that they had while
            rates were chosen.
        batch: Examples in a step, of all processes together.
        look: Examples that are measured at a time.
        optimiser: ``adam``, ``adamw`` or ``sgd`` (with momentum 0.9).
        weight_decay: Of the optimiser.
        schedule: ``constant``; ``cosine`` to zero; or ``plateau``: a tenth wherever validation has not become better by
            1e-4 for 3 epochs.
        patience: Epochs without a better validation (by 1e-3) after which training ends; None to train for all.
        keep: Which weights are tested: those of the ``last`` epoch, or of the ``best`` by validation.
        precision: ``no`` mixed precision, ``fp16`` or ``bf16``.
        augmentation: Of training images.
        probes: Whether trained memories are probed, on the validation examples.
    """

    name: Annotated[str, Field(min_length=1, pattern=r"^[\w.-]+$")]
    about: str = ""
    model: Annotated[str, Field(min_length=1)]
    frozen: bool = False
    data: Data
    arms: Annotated[dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], Arm], Field(min_length=1)]
    declared: tuple[tuple[str, str], ...] = ()
    predicted: tuple[Prediction, ...] = ()
    seeds: Count = 10
    tuning: Count = 2
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)] = (1e-3, 3e-3, 1e-2)
    epochs: Count | None = None
    seconds: Rate | None = None
    batch: Count = 32
    look: Count = 256
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    patience: Count | None = None
    keep: Literal["last", "best"] = "last"
    precision: Literal["no", "fp16", "bf16"] = "no"
    augmentation: Augmentation = Augmentation()
    probes: bool = True

    @model_validator(mode="after")
    def _comparisons_are_of_arms(self) -> "Recipe":
        named = [(f"declared[{place}]", name) for place, pair in enumerate(self.declared) for name in pair]
        for place, one in enumerate(self.predicted):
            named += [(f"predicted[{place}]", name) for name in (one.arm, one.above) if name is not None]
        for where, name in named:
            if name not in self.arms:
                raise ValueError(f"{where} names the arm {name!r}: there are {', '.join(self.arms)}")
        if len(self.declared) > MOST_DECLARED:
            raise ValueError(f"{len(self.declared)} comparisons are declared: declare the {MOST_DECLARED} it is for")
        return self

    @model_validator(mode="after")
    def _its_length_is_given_once(self) -> "Recipe":
        if (self.epochs is None) == (self.seconds is None):
            raise ValueError("give either epochs or seconds")
        return self

    @property
    def digest(self) -> str:
        """What tells a recipe from others: twelve digits of the SHA-256 of its JSON."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:12]


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        ConfigError: There is none, or something in it is wrong; the message names the place.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is no recipe: {error}") from error
    return recipe_of(content, str(path))


def recipe_of(content: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A recipe from what a file holds.

    Raises:
        ConfigError: Something in it is wrong; the message names the place.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'recipe'}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"{where}: {told}") from error
