"""A whole experiment: rates are chosen, every arm is trained with every seed, and what they say is what scipy says."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from aimgraph.cli.main import cli
from aimgraph.errors import ConfigError
from aimgraph.experiment import run as runs
from aimgraph.experiment.recipe import Recipe, recipe_of
from aimgraph.experiment.results import Experiment, Lost, Result, Unit, experiment_of, read_experiment, result_of
from aimgraph.experiment.run import Way, best_rate, run_experiment
from aimgraph.units.runner import Limits

MEMORY = {"shape": [4, 4, 2]}
ARMS: dict[str, Any] = {
    "base": {"kind": "base"},
    "static": {"kind": "static", "options": MEMORY},
    "random": {"kind": "random", "options": MEMORY},
}


def recipe(**changed: Any) -> Recipe:
    data = {"name": "digits", "train": 320, "validation": 100, "test": 300}
    given = {"name": "small", "model": "tests.experiment.networks:small", "data": data, "arms": ARMS, "epochs": 3}
    given |= {"seeds": 3, "tuning": 1, "rates": [3e-3, 1e-2], "declared": [["static", "base"]], "probes": False}
    return recipe_of({**given, **changed})


class Seen:
    """What a run tells."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int, int]] = []
        self.epochs: list[tuple[Unit, int]] = []
        self.units: list[Unit] = []

    def begin(self, phase: str, units: Any, known: int) -> None:
        self.phases.append((phase, len(units), known))

    def epoch(self, unit: Unit, done: int) -> None:
        self.epochs.append((unit, done))

    def ended(self, unit: Unit, outcome: Result | Lost) -> None:
        self.units.append(unit)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Seen, Path]:
    out, seen = tmp_path_factory.mktemp("experiment"), Seen()
    return run_experiment(recipe(), Way(out, jobs=2), seen), seen, out


def test_each_arm_has_a_rate_and_every_seed(done: tuple[Experiment, Seen, Path]) -> None:
    experiment, seen, _ = done
    assert seen.phases == [("choosing rates", 6, 0), ("training", 9, 0)]
    assert len(seen.epochs) == 15 * 3
    assert [(one.unit.arm, one.unit.seed) for one in experiment.units] == [
        (arm, seed) for arm in ARMS for seed in range(3)
    ]
    assert not experiment.lost
    for name, facts in experiment.arms.items():
        assert list(facts.tuning) == ["0.003", "0.01"]
        best = max(facts.tuning, key=lambda rate: np.mean(facts.tuning[rate]))
        assert facts.rate == float(best)
        assert all(one.unit.rate == facts.rate for one in experiment.units if one.unit.arm == name)
    assert all(one.test is not None and len(one.validation) == 3 for one in experiment.units)
    assert experiment.machine["processes of a unit"] == "1"


def test_its_statistics_are_those_of_scipy(done: tuple[Experiment, Seen, Path]) -> None:
    experiment, _, _ = done
    scores = {arm: np.array([one.test for one in experiment.units if one.unit.arm == arm]) for arm in ARMS}
    assert [(one.arm, one.base) for one in experiment.comparisons] == [("static", "base"), ("random", "base")]
    for one in experiment.comparisons:
        gaps = scores[one.arm] - scores[one.base]
        found = stats.ttest_rel(scores[one.arm], scores[one.base])
        interval = found.confidence_interval(0.95)
        assert one.mean == pytest.approx(gaps.mean())
        assert (one.low, one.high) == pytest.approx((interval.low, interval.high))
        assert one.p == pytest.approx(found.pvalue)
        flips = stats.permutation_test(
            (gaps,), np.mean, permutation_type="samples", alternative="two-sided", n_resamples=np.inf
        )
        assert one.p_flips == pytest.approx(flips.pvalue)
        above = stats.mannwhitneyu(gaps, [0.0]).statistic / len(gaps)
        assert one.above == pytest.approx(above)
        error = gaps.std(ddof=1) / np.sqrt(3)
        shift, edge = one.detectable / error, stats.t.ppf(0.975, 2)
        power = stats.nct.sf(edge, 2, shift) + stats.nct.cdf(-edge, 2, shift)
        assert power == pytest.approx(0.8, abs=1e-6)
    assert experiment.comparisons[0].verdict in ("helps", "hurts", "no effect shown")
    assert experiment.comparisons[1].verdict == "exploratory"


def test_at_equal_seconds_the_slower_arm_has_trained_less(done: tuple[Experiment, Seen, Path]) -> None:
    experiment, _, _ = done
    one = experiment.at_equal_seconds[0]
    ends = {arm: experiment.arms[arm].seconds or 0 for arm in ("static", "base")}
    quicker, slower = sorted(ends, key=lambda arm: ends[arm])
    epochs = max(1, int(3 * ends[quicker] / ends[slower] + 1e-9))
    last = {quicker: 2, slower: epochs - 1}
    scores = {
        arm: np.array([unit.validation[last[arm]] for unit in experiment.units if unit.unit.arm == arm]) for arm in last
    }
    assert one.mean == pytest.approx((scores["static"] - scores["base"]).mean())


def test_results_are_read_as_they_were_written(done: tuple[Experiment, Seen, Path], tmp_path: Path) -> None:
    experiment, _, _ = done
    path = tmp_path / "results.json"
    path.write_text(json.dumps(experiment.to_dict(), allow_nan=False))
    assert read_experiment(path) == experiment
    path.write_text(json.dumps(experiment.to_dict() | {"format": 0}))
    with pytest.raises(ConfigError, match=r"results.json holds no results of an experiment: ValueError: it has format"):
        read_experiment(path)


def test_what_is_no_number_comes_back_from_strict_json() -> None:
    result = Result(Unit("base", 0.1, 0, 2, tests=True), validation=[0.5, math.nan], loss=[math.inf], test=math.nan)
    text = json.dumps(result.to_dict(), allow_nan=False)
    again = result_of(json.loads(text))
    assert again.loss == [math.inf]
    assert again.validation[0] == 0.5
    assert math.isnan(again.validation[1])
    assert again.test is not None
    assert math.isnan(again.test)


def same(one: Experiment, other: Experiment) -> bool:
    """Whether all that does not depend on time is the same, to the bit."""

    def timeless(experiment: Experiment) -> list[Any]:
        found = experiment_of(experiment.to_dict())
        for unit in found.units:
            unit.seconds = []
        return [found.units, found.comparisons, [facts.tuning for facts in found.arms.values()]]

    return timeless(one) == timeless(other)


def test_what_is_there_is_not_run_again(done: tuple[Experiment, Seen, Path]) -> None:
    experiment, _, out = done
    seen = Seen()
    again = run_experiment(recipe(), Way(out), seen)
    assert seen.phases == [("choosing rates", 6, 6), ("training", 9, 9)]
    assert again == experiment
    more, seen = recipe(seeds=4, arms=ARMS | {"other": {"kind": "base"}}), Seen()
    grown = run_experiment(more, Way(out, jobs=2), seen)
    assert seen.phases[0] == ("choosing rates", 8, 0)  # its seeds begin behind those that arms are trained with
    assert seen.phases[1][2] <= 9
    first = [one for one in grown.units if one.unit.arm == "other"]
    second = [one for one in grown.units if one.unit.arm == "base"]
    assert [one.test for one in first] == [one.test for one in second]


def test_units_in_two_processes_at_once_are_those_in_one(done: tuple[Experiment, Seen, Path], tmp_path: Path) -> None:
    assert same(run_experiment(recipe(), Way(tmp_path), None), done[0])


@pytest.mark.skipif(sys.platform == "win32", reason="kills by SIGKILL")
def test_a_run_that_is_killed_goes_on_and_ends_the_same(done: tuple[Experiment, Seen, Path], tmp_path: Path) -> None:
    file = tmp_path / "small.json"
    file.write_text(json.dumps(recipe().model_dump(mode="json", exclude_none=True)))
    code = (
        "import json, sys; from pathlib import Path; from aimgraph.experiment.recipe import recipe_of;"
        "from aimgraph.experiment.run import Way, run_experiment;"
        "run_experiment(recipe_of(json.loads(Path(sys.argv[1]).read_text())), Way(Path(sys.argv[2])))"
    )
    out = tmp_path / "out"
    states = out / "units"
    for wanted in (1, 4):  # in the first unit, and after some are done
        process = subprocess.Popen([sys.executable, "-c", code, str(file), str(out)])
        until = time.monotonic() + 120
        while time.monotonic() < until:
            journal = out / "journal.jsonl"
            units = journal.read_bytes().count(b"\n") if journal.exists() else 0
            if units >= wanted - 1 and list(states.glob("*.pt")):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert same(run_experiment(recipe(), Way(out), None), done[0])


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with runs.FileLock(tmp_path / ".lock"), pytest.raises(ConfigError, match="another run is at work in"):
        run_experiment(recipe(), Way(tmp_path))


def test_units_without_a_result_are_told_and_tried_again(tmp_path: Path) -> None:
    arms = {"base": ARMS["base"], "biases": {"kind": "biases"}}
    one = recipe(arms=arms, declared=[["biases", "base"]], rates=[1e-2], epochs=1)
    experiment = run_experiment(one, Way(tmp_path))
    assert [lost.unit.seed for lost in experiment.lost] == [0, 1, 2]
    assert "frozen = true" in experiment.lost[0].reason
    assert experiment.comparisons == []
    assert experiment.notes == ["biases and base have 0 seeds in common: they are not compared"]
    assert not experiment.sound
    seen = Seen()
    run_experiment(one, Way(tmp_path), seen)
    assert seen.phases == [("training", 6, 3)]
    broken = recipe(model="tests.experiment.networks:broken", arms={"base": ARMS["base"]}, declared=[], rates=[1e-2])
    lost = run_experiment(broken, Way(tmp_path / "broken")).lost[0]
    assert "no such network" in lost.reason


def test_the_time_limit_of_a_unit(tmp_path: Path) -> None:
    one = recipe(arms={"base": ARMS["base"]}, declared=[], rates=[1e-2], seeds=1, epochs=100_000)
    experiment = run_experiment(one, Way(tmp_path, limits=Limits(seconds=3)))
    assert [lost.reason for lost in experiment.lost] == ["not done after 3 s"]
    assert list((tmp_path / "units").glob("*.pt"))


def test_seconds_in_place_of_epochs(tmp_path: Path) -> None:
    one = recipe(epochs=None, seconds=0.5, rates=[1e-2], seeds=2)
    seen = Seen()
    experiment = run_experiment(one, Way(tmp_path), seen)
    assert seen.phases == [("timing", 3, 0), ("training", 6, 0)]
    for facts in experiment.arms.values():
        assert facts.epochs >= 1
        assert facts.seconds is not None
        assert facts.epochs * facts.seconds < 5


def test_the_best_rate_of_equal_ones_is_the_smallest() -> None:
    assert best_rate([0.3, 0.1, 0.2], {"0.1": [0.5, 0.7], "0.2": [0.6, 0.6], "0.3": [0.9, float("nan")]}) == 0.1
    assert best_rate([0.1, 0.2], {"0.1": [], "0.2": [0.1]}) == 0.2
    assert best_rate([0.1], {}) is None


LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.mark.skipif(sys.platform != "linux", reason="gloo")
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    data = {"name": "digits", "train": 64, "validation": 50, "test": 50}
    short = {"batch": 64, "epochs": 2, "seeds": 1, "rates": [1e-2], "declared": [], "arms": {"static": ARMS["static"]}}
    one = recipe(model="tests.experiment.networks:Exact", data=data, **short)
    alone = run_experiment(one, Way(tmp_path / "alone"))
    together = run_experiment(one, Way(tmp_path / "together", launch=LAUNCH))
    assert not together.lost
    assert {unit.processes for unit in together.units} == {2}
    for first, second in zip(alone.units, together.units, strict=True):
        assert second.loss == pytest.approx(first.loss, rel=1e-12, abs=0)
        assert second.loss != [first.loss[0]] * 2
        assert (second.validation, second.test) == (first.validation, first.test)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    path = tmp_path / "small.toml"
    path.write_text(
        'name = "small"\nmodel = "tests.experiment.networks:small"\nepochs = 1\nseeds = 2\nrates = [0.01]\n'
        'declared = [["static", "base"]]\n[data]\nname = "digits"\ntrain = 64\ntest = 50\n[arms.base]\nkind = "base"\n'
        '[arms.static]\nkind = "static"\noptions = {shape = [4, 4, 2]}\n'
    )
    out = tmp_path / "out"
    result = CliRunner().invoke(cli, ["experiment", "run", str(path), "--out", str(out), "--seeds", "3"])
    assert result.exit_code == 0, result.output
    assert {"report.html", "report.md", "results.json"} <= {item.name for item in out.iterdir()}
    assert len(read_experiment(out / "results.json").units) == 6
    again = CliRunner().invoke(cli, ["experiment", "report", str(out)])
    assert again.exit_code == 0, again.output
    assert again.output in result.output
    wrong = CliRunner().invoke(cli, ["experiment", "run", "positoin"])
    assert wrong.exit_code != 0
    listed = CliRunner().invoke(cli, ["experiment", "list"]).output
    assert "position" in listed
    shown = CliRunner().invoke(cli, ["experiment", "show", "position"]).output
    assert "[arms.base]" in shown
