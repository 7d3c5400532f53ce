"""Recipes, arms, and units that go on where they were stopped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from aimgraph.errors import ConfigError
from aimgraph.experiment import unit as units
from aimgraph.experiment.data import examples
from aimgraph.experiment.recipe import Recipe, read_recipe, recipe_of
from aimgraph.experiment.results import Result, Unit
from aimgraph.experiment.unit import run

MEMORY = {"shape": (4, 4, 2)}
ARMS: dict[str, Any] = {
    "base": {"kind": "base"},
    "static": {"kind": "static", "options": MEMORY},
    "written": {"kind": "state", "options": MEMORY},
    "zero": {"kind": "zero", "options": MEMORY},
    "random": {"kind": "random", "options": MEMORY},
    "wide": {"kind": "wide", "options": MEMORY},
    "map": {"kind": "bias-map", "options": MEMORY},
}
FROZEN = ("base", "static", "bias-map", "last-layer", "biases", "norms", "full", "lora")

AUGMENTED = {"augmentation": {"rotation": 0.05, "translation": 0.1, "contrast": 0.2}}


def network() -> nn.Module:
    """[B, 1, 8, 8] -> [B, 10]; drops features, so that it draws random numbers while it is trained."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(8, 16, 3, 2, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def recipe(**changed: Any) -> Recipe:
    data = {"name": "digits", "train": 96, "validation": 50, "test": 60}
    given = {"name": "digits", "model": f"{__name__}:network", "data": data, "arms": ARMS, "epochs": 3, "batch": 16}
    return recipe_of({**given, "schedule": "cosine", **changed})


def frozen() -> Recipe:
    return recipe(frozen=True, arms={kind: {"kind": kind} for kind in FROZEN}, epochs=1)


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """One process can have one precision; the next test is to have its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("arm", ["base", "static", "written", "map"])
def test_a_unit_that_was_stopped_is_one_that_was_not(arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, unit = recipe(), Unit(arm, 3e-3, 1, 3, tests=True)
    whole = run(one, unit, tmp_path / "whole")
    save, saved = units._Run._save, list[int]()

    def stop(self: units._Run) -> None:
        save(self)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(units._Run, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        run(one, unit, tmp_path / "stopped")
    monkeypatch.setattr(units._Run, "_save", save)
    torch.manual_seed(99)
    again = run(one, unit, tmp_path / "stopped")
    assert (again.validation, again.loss, again.test) == (whole.validation, whole.loss, whole.test)
    assert len(again.loss) == 3
    assert list((tmp_path / "stopped").iterdir()) == []


def test_a_memory_of_zeros_changes_nothing_and_its_reads_do_not_move(tmp_path: Path) -> None:
    one = recipe()
    base, zero, static = (run(one, Unit(arm, 1e-2, 0, 3, tests=True), tmp_path) for arm in ("base", "zero", "static"))
    assert (zero.loss, zero.test) == (base.loss, base.test)
    assert zero.still == static.still == []  # that the reads of a memory of zeros stand still is what the arm is for
    assert static.loss != base.loss
    assert base.processes == 1


def test_all_arms_of_a_frozen_base_run(tmp_path: Path) -> None:
    one = frozen()
    found: dict[str, Result] = {arm: run(one, Unit(arm, 1e-2, 0, 1, tests=False), tmp_path) for arm in one.arms}
    assert found["base"].trained == 0
    assert all(result.test is None and len(result.validation) == 1 for result in found.values())
    assert found["full"].trained == sum(parameter.numel() for parameter in network().parameters())


def test_a_recipe_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "digits.toml"
    path.write_text(
        f'name = "digits"\nmodel = "{__name__}:network"\nepochs = 2\ndeclared = [["static", "base"]]\n'
        '[data]\nname = "digits"\n[arms.base]\nkind = "base"\n[arms.static]\nkind = "static"\n'
        "options = {shape = [4, 4, 2]}\n"
    )
    one = read_recipe(path)
    assert one.declared == (("static", "base"),)
    assert one.digest == read_recipe(path).digest != recipe().digest
    for text, message in (
        ("epochs = 2", "give either epochs or seconds"),
        ('kind = "static"', r"arms.static.kind: Input should be 'base', 'static'"),
        ('["static", "base"]', r"declared\[0\] names the arm 'other'"),
        ("[4, 4, 2]", r"arms.static: .*shape"),
    ):
        other = {"epochs = 2": "", 'kind = "static"': 'kind = "m"', "[4, 4, 2]": "[4, 4]"}.get(
            text, '["other", "base"]'
        )
        (tmp_path / "wrong.toml").write_text(path.read_text().replace(text, other, 1))
        with pytest.raises(ConfigError, match=message):
            read_recipe(tmp_path / "wrong.toml")
    with pytest.raises(ConfigError, match="is no recipe"):
        read_recipe(tmp_path / "none.toml")


def test_a_model_of_too_few_classes_is_named(tmp_path: Path) -> None:
    one = recipe(model=f"{__name__}:small")
    with pytest.raises(
        ConfigError,
        match=r"gives \[16, 3\], and digits asks for \[B, classes \(at least 10\)\]: give a model of as many classes",
    ):
        run(one, Unit("base", 1e-3, 0, 3, tests=False), tmp_path)


def small() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def test_the_weights_of_the_best_epoch_are_tested(tmp_path: Path) -> None:
    unit = Unit("base", 0.3, 0, 6, tests=True)  # so high a rate that it goes up and down
    best = run(recipe(keep="best", schedule="constant"), unit, tmp_path)
    assert best.best == best.validation.index(max(best.validation))
    upto = run(recipe(schedule="constant"), Unit("base", 0.3, 0, best.best + 1, tests=True), tmp_path)
    assert upto.validation == best.validation[: best.best + 1]
    assert best.test == upto.test
    last = run(recipe(schedule="constant"), unit, tmp_path)
    assert last.best is None
    assert last.validation == best.validation


def test_training_ends_where_patience_does(tmp_path: Path) -> None:
    found = run(recipe(patience=1, keep="best"), Unit("base", 1e-7, 0, 50, tests=True), tmp_path)
    assert len(found.validation) < 50


@pytest.mark.parametrize("changed", [{"keep": "best"}, {"schedule": "plateau"}, {"optimiser": "sgd"}, AUGMENTED])
def test_going_on_is_the_same_whatever_the_recipe(
    changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, unit = recipe(**{"schedule": "constant", **changed}), Unit("written", 0.1, 1, 4, tests=True)
    whole = run(one, unit, tmp_path / "whole")
    save = units._Run._save

    def stop(self: units._Run) -> None:
        save(self)
        raise KeyboardInterrupt

    for _ in range(3):
        monkeypatch.setattr(units._Run, "_save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(one, unit, tmp_path / "stopped")
    monkeypatch.setattr(units._Run, "_save", save)
    again = run(one, unit, tmp_path / "stopped")
    assert (again.validation, again.loss, again.test, again.best) == (
        whole.validation,
        whole.loss,
        whole.test,
        whole.best,
    )


def test_augmented_images_train_otherwise(tmp_path: Path) -> None:
    unit = Unit("base", 1e-2, 0, 1, tests=False)
    assert run(recipe(**AUGMENTED), unit, tmp_path).loss != run(recipe(), unit, tmp_path).loss


def test_a_network_that_diverges_ends_and_says_so(tmp_path: Path) -> None:
    found = run(recipe(optimiser="sgd", schedule="constant"), Unit("base", 1e30, 0, 5, tests=True), tmp_path)
    assert found.notes == ["its parameters were no numbers after epoch 1"]
    assert len(found.validation) == 1


def test_bfloat16_trains_and_float16_says_what_it_needs(tmp_path: Path, fresh_accelerator: None) -> None:
    unit = Unit("static", 1e-2, 0, 1, tests=True)
    plain = run(recipe(), unit, tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    half = run(recipe(precision="bf16"), unit, tmp_path)
    assert half.loss != plain.loss
    assert half.loss == pytest.approx(plain.loss, rel=0.05)
    if not torch.cuda.is_available():
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(ConfigError, match='precision = "fp16" takes a GPU, and this machine has none'):
            run(recipe(precision="fp16"), unit, tmp_path)


def test_what_is_said_of_each_pixel(tmp_path: Path) -> None:
    data = {"name": "switch", "train": 32, "validation": 16, "test": 16}
    arms = {"base": {"kind": "base"}, "update": {"kind": "update", "options": {"shape": [1, 1, 4]}}}
    one = recipe(data=data, model="aimgraph.experiment.networks:local_pixels", arms=arms, batch=16)
    for arm in arms:
        found = run(one, Unit(arm, 1e-3, 0, 1, tests=True), tmp_path)
        assert found.metric == "accuracy"
        assert 0.3 < (found.test or 0) < 0.7


def test_numbers_are_scored_by_r2_in_the_order_of_a_stream(tmp_path: Path) -> None:
    data = {"name": "drift", "train": 64, "validation": 32, "test": 32}
    carried = {"shape": [8], "sites": ["first"], "updates": ["skip"], "block": "feature-means", "write_in_eval": True}
    arms = {"base": {"kind": "base"}, "state": {"kind": "state", "options": carried}}
    one = recipe(data=data, model="aimgraph.experiment.networks:Brightness", arms=arms, batch=4, look=1)
    for arm in arms:
        found = run(one, Unit(arm, 1e-3, 0, 2, tests=True), tmp_path)
        assert found.metric == "R2"
        assert (found.test or 0) < 1
    assert found.probes["plain"] == found.probes["batch 1"]
    assert found.probes["plain"] != found.probes["permuted"]


def test_looking_leaves_the_carried_state_as_training_left_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"state": {"kind": "state", "options": {**MEMORY, "updates": "stages", "write_in_eval": True}}}
    seen = []
    save = units._Run._save

    def note(self: units._Run) -> None:
        seen.append(dict(self.bare.named_buffers())["aim.memory.carry.state"].clone())
        self._score(self.train)
        seen.append(dict(self.bare.named_buffers())["aim.memory.carry.state"].clone())
        save(self)

    monkeypatch.setattr(units._Run, "_save", note)
    monkeypatch.setattr(units._Run, "train", examples(recipe().data).train, raising=False)
    run(recipe(arms=arms), Unit("state", 1e-2, 0, 2, tests=False), tmp_path)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert bool(seen[0].any())
