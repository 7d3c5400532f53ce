"""The same results on Ray."""

from pathlib import Path

import pytest

from aimgraph.experiment.results import experiment_of
from aimgraph.experiment.run import Way, run_experiment
from aimgraph.units.remote import LOCAL
from tests.experiment.test_run import recipe


@pytest.mark.slow
def test_units_on_ray_are_those_of_a_local_run(tmp_path: Path) -> None:
    one = recipe(seeds=2, rates=[1e-2], epochs=2)
    found = [run_experiment(one, Way(tmp_path / str(ray), jobs=2, ray=ray)) for ray in (None, LOCAL)]
    assert not found[1].lost
    for experiment in found:
        for unit in experiment.units:
            unit.seconds = []
    assert experiment_of(found[1].to_dict()).units == found[0].units
