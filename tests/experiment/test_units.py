"""Recipes, arms, and units that go on where they were stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aimgraph.errors import ConfigError
from aimgraph.experiment import unit as units
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
        ('["static", "base"]', "declared names the arm 'other'"),
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
