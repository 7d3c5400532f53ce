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

Kind: TypeAlias = Literal[
    "base", "memory", "zero", "random", "bias-map", "wide", "last-layer", "biases", "norms", "full", "lora"
]
"""What is trained: see `Arm`."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(_Part):
    """Where examples come from.

    Attributes:
        name: ``digits`` (scikit-learn's), ``idx`` (a folder with the four IDX files of MNIST or Fashion-MNIST) or
            ``position`` (made: which of 16 cells holds a square).
        folder: For ``idx``; by default where Debian's ``dataset-fashion-mnist`` puts them.
        train: Examples to train on; all by default, of ``position`` 4,096.
        validation: Examples, taken from those to train on, that rates are chosen by.
        test: Examples that are looked at once; all by default, of ``position`` 1,024.
        side: Images are resampled to this many pixels a side, and given three channels, if it is set.
    """

    name: Literal["digits", "idx", "position"]
    folder: str | None = None
    train: Count | None = None
    validation: Count = 200
    test: Count | None = None
    side: Count | None = None


class Arm(_Part):
    """One way to train the base.

    Attributes:
        kind: ``base``: nothing is added; ``memory``: `aimgraph.transform` with `options`; ``zero`` and ``random``: the
            same with values that are zero, or drawn, and stay; ``bias-map``: a number for each place and channel of
            each layer that would read, and no memory; ``wide``: `aimgraph.widen` to the parameters that the memory of
            `options` adds. On a frozen base, which parts of it are trained in place of a memory: ``last-layer``,
            ``biases``, ``norms``, ``full``, ``lora``.
        options: Of `aimgraph.AimConfig`.
        rank: Of ``lora``.
    """

    kind: Kind
    options: dict[str, Any] = Field(default_factory=dict)
    rank: Count = 8

    @model_validator(mode="after")
    def _options_are_those_of_a_memory(self) -> "Arm":
        AimConfig().with_options(**self.options)
        return self


class Recipe(_Part):
    """An experiment.

    Attributes:
        name: What its report is called.
        model: The base, as for every command: ``zoo/NAME``, ``package.module:factory``, ...
        frozen: Whether the base is frozen, and only what an arm adds or names is trained.
        data: The examples.
        arms: Name -> arm.
        declared: (arm, base) of the comparisons that the experiment is for, at most three.
        seeds: How many, from 0. A seed draws initial weights, the memory, and the order of the data.
        tuning: How many seeds, beyond those, the rate of each arm is chosen with, by validation.
        rates: Learning rates to choose from, the same for all arms.
        epochs: Passes over the data.
        batch: Examples in a step.
        optimiser: ``adam`` or ``sgd`` (with momentum 0.9).
        schedule: ``constant``, or ``cosine`` to zero.
    """

    name: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]
    frozen: bool = False
    data: Data
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    declared: tuple[tuple[str, str], ...] = ()
    seeds: Count = 10
    tuning: Count = 2
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)] = (1e-3, 3e-3, 1e-2)
    epochs: Count
    batch: Count = 32
    optimiser: Literal["adam", "sgd"] = "adam"
    schedule: Literal["constant", "cosine"] = "constant"

    @model_validator(mode="after")
    def _comparisons_are_of_arms(self) -> "Recipe":
        for pair in self.declared:
            for name in pair:
                if name not in self.arms:
                    raise ValueError(f"declared names the arm {name!r}: there are {', '.join(self.arms)}")
        if len(self.declared) > MOST_DECLARED:
            raise ValueError(f"{len(self.declared)} comparisons are declared: declare the {MOST_DECLARED} it is for")
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
