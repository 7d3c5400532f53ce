"""Recipes that come with aimgraph: each can be read, and what it names is there."""

import pytest
import torch

from aimgraph.errors import ConfigError
from aimgraph.experiment.arms import made
from aimgraph.experiment.data import examples
from aimgraph.experiment.recipe import Recipe, read_recipe
from aimgraph.experiment.shipped import path_of, shipped

ALL = shipped()
CONTROLS = [name for name, recipe in ALL.items() if recipe.predicted]


def test_there_are_recipes_and_controls() -> None:
    assert {"position", "sensor-50", "sensor-400", "switch", "drift", "drift-mixed", "none"} == set(CONTROLS)
    assert all(recipe.name == name and recipe.about for name, recipe in ALL.items())
    assert all(len(recipe.declared) > 0 and recipe.seeds >= 10 for recipe in ALL.values())


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.filterwarnings("ignore:features-only. nothing is written", "ignore:wide. ")
def test_every_arm_of_a_control_can_be_made(name: str) -> None:
    recipe: Recipe = ALL[name]
    parts = examples(recipe.data.model_copy(update={"train": 20, "test": 20, "validation": 20}))
    x = parts.train.at(torch.arange(2)).pixels
    for arm in recipe.arms.values():
        module = made(recipe, arm, 0, x).module
        assert module.eval()(x).isfinite().all()


def test_a_name_that_is_no_recipe() -> None:
    with pytest.raises(ConfigError, match=r"RECIPE is 'positoin': there is no such file, .*did you mean position\?"):
        path_of("positoin")
    assert read_recipe(path_of("position")).name == "position"
