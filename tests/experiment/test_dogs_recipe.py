"""The recipe for Stanford Dogs runs as it stands, on a folder of the same layout with a few small pictures."""

from pathlib import Path

import pytest

from aimgraph.experiment.recipe import Recipe
from aimgraph.experiment.run import Way, run_experiment
from aimgraph.experiment.shipped import shipped
from aimgraph.units.runner import Limits
from tests.experiment.test_pictures import dogs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_recipe_of_the_notebook_runs_on_a_folder_of_its_layout(tmp_path: Path) -> None:
    dogs(tmp_path / "dogs")
    one = shipped()["stanford-dogs"]
    data = one.data.model_copy(update={"folder": str(tmp_path / "dogs"), "side": 64, "validation": 4})
    small = {"data": data, "epochs": 1, "seeds": 2, "rates": (1e-3,), "batch": 4}
    recipe: Recipe = one.model_copy(update=small)
    experiment = run_experiment(recipe, Way(tmp_path / "out", limits=Limits(seconds=1800, gibibytes=20)))
    assert experiment.lost == []
    assert {result.unit.arm for result in experiment.units} == set(one.arms)
    assert all(result.test is not None and result.best == 0 for result in experiment.units)
    added = {name: facts.added for name, facts in experiment.arms.items()}
    assert added["author"] == 2_880_384  # as in the notebook, at 120 classes, without running statistics
    assert len(experiment.comparisons) == 5
