"""The levels, on networks small enough to know every number."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import aimgraph
from aimgraph.emit.module import AimModule
from aimgraph.widen.build import built
from aimgraph.zoo_check import levels, numeric
from aimgraph.zoo_check.levels import check
from aimgraph.zoo_check.manifest import Entry
from aimgraph.zoo_check.rows import BASE, CRASHED, FAILED, PASSED, REFUSED

GOOD = Entry("tests.zoo_check.factories:small", inputs="2x3x8x8", small="2x3x8x8")
PARTLY = Entry("tests.zoo_check.factories:Partly", inputs="2x3x8x8", small="2x3x8x8")


def test_structure_counts_every_layer() -> None:
    row = check(PARTLY, "structure")
    assert (row.status, row.reason) == (PASSED, "")
    assert (row.rewritten, row.called, row.present) == (4, 4, 4)
    assert row.left == "1 x never called in the forward pass"


def test_a_layer_that_is_called_and_not_read_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = aimgraph.transform
    monkeypatch.setattr(levels, "transform", lambda *given, **named: transform(*given, exclude=["down"], **named))
    row = check(PARTLY, "structure")
    assert (row.rewritten, row.called, row.present) == (3, 4, 4)
    assert row.reason.startswith("called but not read: down: ")


def test_structure_of_a_model_that_needs_values_to_be_built() -> None:
    row = check(Entry("tests.zoo_check.factories:Undecided", inputs="2x3"), "structure")
    assert (row.status, row.rewritten, row.called) == (PASSED, 1, 1)


def test_numeric_passes_on_a_good_model() -> None:
    row = check(GOOD, "numeric")
    assert (row.status, row.reason, row.rewritten, row.called) == (PASSED, "", 2, 2)
    assert row.seconds > 0


def test_numeric_compares_complex_numbers_in_two_precisions() -> None:
    row = check(Entry("tests.zoo_check.factories:Spectral", inputs="2x8"), "numeric")
    assert (row.status, row.rewritten, row.called) == (PASSED, 2, 2), row.reason
    assert "folded" not in row.reason


def test_numeric_says_what_it_could_not_compare() -> None:
    row = check(Entry("tests.zoo_check.factories:Limited", inputs="2x3x8x8", small="2x3x8x8"), "numeric")
    assert (row.status, row.rewritten, row.called) == (PASSED, 2, 2)
    assert row.reason == (
        "not compared: bfloat16 autocast (eval): the base does not run; bfloat16 autocast (train): the base does not "
        "run; another image size: the base takes none; gradients at layers that the output does not depend on: 1"
    )


def other_weight(aim: AimModule) -> None:
    with torch.no_grad():
        aim.get_parameter("0.weight")[0, 0, 0, 0] += 1e-3


def reads_at_once(aim: AimModule) -> None:
    with torch.no_grad():
        next(p for name, p in aim.named_parameters() if ".reads." in name).fill_(1e-3)


def never_learns(aim: AimModule) -> None:
    next(p for name, p in aim.named_parameters() if ".reads." in name).requires_grad_(False)


def forgets_its_source(aim: AimModule) -> None:
    next(p for name, p in aim.named_parameters() if ".source." in name).requires_grad_(False)


def only_at_its_size(aim: AimModule) -> None:
    aim.register_forward_hook(lambda _, given, output: output if given[0].shape[-1] == 8 else output + 1)


def right_from_one_start(aim: AimModule) -> None:
    def spoil(one: torch.nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
        values = [p for name, p in one.named_parameters() if ".source." in name]
        return output + 1 if values and not values[0].any() else output

    aim.register_forward_hook(spoil)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (right_from_one_start, "output from the other start (eval)"),
        (only_at_its_size, "output at another size (eval): differs for [[1, 3, 40, 72]]"),
        (other_weight, "base weights are unchanged"),
        (reads_at_once, "each memory starts with read weights or values of zero"),
        (never_learns, "gradients of the memory: that of memory.reads"),
        (forgets_its_source, "gradients of the memory: that of memory.source"),
    ],
)
def test_numeric_fails_on_a_wrong_model(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[AimModule], None], reason: str
) -> None:
    transform = aimgraph.transform

    def wrong(*given: Any, **named: Any) -> AimModule:
        aim = transform(*given, **named)
        spoil(aim)
        return aim

    monkeypatch.setattr(levels, "transform", wrong)
    row = check(GOOD, "numeric")
    assert row.status == FAILED
    assert reason in row.reason


@pytest.mark.parametrize("factor", [1 + 1e-9, float("nan")])
def test_numeric_fails_on_a_wrong_fold(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    fold = aimgraph.fold

    def wrong(aim: AimModule, *given: Any, **named: Any) -> torch.nn.Module:
        folded = fold(aim, *given, **named)
        with torch.no_grad():
            next(folded.parameters()).mul_(factor)
        return folded

    monkeypatch.setattr(numeric, "fold", wrong)
    row = check(GOOD, "numeric")
    assert row.status == FAILED
    assert "folded in float64: max|d| / max|y| = " in row.reason


def test_structure_of_a_model_that_decides_by_values() -> None:
    row = check(Entry("tests.zoo_check.factories:ByValue", inputs="2x3x8x8"), "structure")
    assert (row.status, row.rewritten, row.called, row.fallback) == (PASSED, 2, 2, 2), row.reason


def test_onnx_passes_on_the_mlp() -> None:
    row = check(Entry("zoo/mlp"), "onnx")
    assert (row.status, row.reason, row.rewritten, row.called) == (PASSED, "", 3, 3)


@pytest.mark.parametrize(("limited", "status"), [(True, BASE), (False, FAILED)])
def test_a_base_that_can_not_be_exported_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, limited: bool, status: str
) -> None:
    def refuse(module: torch.nn.Module, *_: Any, **__: Any) -> None:
        if limited or isinstance(module, AimModule):
            raise aimgraph.errors.ExportError("no such operator")

    monkeypatch.setattr("aimgraph.zoo_check.onnx.export_onnx", refuse)
    row = check(Entry("zoo/mlp"), "onnx")
    assert row.status == status
    assert "no such operator" in row.reason


def test_a_base_whose_batch_size_the_exporter_fixes_is_told_apart() -> None:
    row = check(Entry("tests.onnx.test_export:Halves", inputs="2x4;2x4", small="2x4;2x4"), "onnx")
    assert row.status == BASE
    assert "the base alone can't be exported: the exporter has fixed the batch size" in row.reason


@pytest.mark.parametrize("level", ["structure", "numeric", "onnx"])
def test_a_model_without_layers_is_refused_with_the_reason(level: str) -> None:
    row = check(Entry("tests.zoo_check.factories:plain", inputs="2x3x8x8", small="2x3x8x8"), level)
    assert row.status == REFUSED
    assert "layer" in row.reason


@pytest.mark.parametrize(
    ("name", "reason"), [("zoo/vgg61", "near misses: vgg16"), ("tests.zoo_check.factories:smal", "small")]
)
def test_a_model_that_is_not_there_is_refused_with_near_misses(name: str, reason: str) -> None:
    row = check(Entry(name), "structure")
    assert row.status == REFUSED
    assert reason in row.reason


def test_an_error_that_is_nobodys_message_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("deep inside")

    monkeypatch.setattr(levels, "transform", broken)
    row = check(GOOD, "structure")
    assert (row.status, row.reason) == (CRASHED, "KeyError: 'deep inside'")


@pytest.mark.parametrize("level", ["structure", "numeric", "onnx"])
@pytest.mark.parametrize(
    "entry",
    [
        Entry("tests.zoo_check.factories:Words", inputs="2x6:int64<50;mask=2x6:bool"),
        Entry("tests.zoo_check.factories:Outer", inputs="2x3x8x8", within="backbone", title="the part"),
    ],
)
def test_numbers_keywords_and_parts(entry: Entry, level: str) -> None:
    row = check(entry, level)
    assert (row.name, row.status, row.reason) == (entry.called, PASSED, "")
    assert row.rewritten == row.called > 0


def test_widen_passes_where_a_budget_is_met_and_outputs_agree() -> None:
    row = check(Entry("zoo/mlp"), "widen")
    assert (row.status, row.rewritten, row.called, row.left) == (PASSED, 2, 2, ""), row.reason
    assert row.reason == "1.50 x the parameters"


def test_widen_says_what_stays_without_lines_and_that_train_mode_draws() -> None:
    row = check(Entry("tests.zoo_check.factories:attends", inputs="2x5x8", small="2x5x8"), "widen")
    assert row.status == PASSED
    assert "2 x bmm sums over the products of two features" in row.left
    assert ".py" not in row.left
    assert row.reason.endswith("not compared: train mode, which draws random numbers")


def test_widen_refuses_what_comes_short() -> None:
    row = check(Entry("tests.zoo_check.factories:softest", inputs="2x8", small="2x8"), "widen")
    assert (row.status, row.rewritten, row.called) == (REFUSED, 0, 1)
    assert row.reason == "1.00 x the parameters"


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_widen_fails_where_outputs_differ(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    def spoiled(model: torch.nn.Module, **options: Any) -> torch.nn.Module:
        made = built(model, **options)
        made.register_forward_hook(lambda module, _, y: y * (1.001 if module.training == (mode == "train") else 1))
        return made

    monkeypatch.setattr("aimgraph.zoo_check.widen.built", spoiled)
    row = check(Entry("zoo/mlp"), "widen")
    assert row.status == FAILED
    assert "outputs in float64 are 1.0e-03 apart" in row.reason
    assert row.reason.startswith("train mode") == (mode == "train")
