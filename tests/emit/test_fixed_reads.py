"""Read weights that stand still, so that a task is N values: who trains, and until when."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import aimgraph
from aimgraph.errors import ConfigError, PlanError
from tests.checkpoint.test_values_alone import VALUE, fixed, names_of
from tests.nets import build, run, updates_for


def test_only_values_are_trained() -> None:
    _, aim, x = fixed()
    free = aimgraph.freeze_base(
        aimgraph.transform(build("residual")[0].eval(), x, start="zero_values", shape=(2, 2, 3))
    )
    assert [group["name"] for group in aimgraph.parameter_groups(aim)] == ["values"]
    assert len(names_of(free)) > 1
    for module in (aim, free):
        run(module.eval(), x).square().sum().backward()
    assert torch.equal(aim.get_parameter(VALUE).grad, free.get_parameter(VALUE).grad)
    assert aim.get_parameter(VALUE).grad.any()
    assert all(p.grad is None for name, p in aim.named_parameters() if ".reads." in name)
    report = str(aimgraph.check_training(aim, lambda aim: run(aim, x).square().sum()))
    assert "fixed by freeze_reads" in report
    reads = copy.deepcopy({key: one for key, one in aim.state_dict().items() if ".reads." in key})
    optimizer = torch.optim.Adam(aimgraph.memory_parameters(aim), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        run(aim, x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(aim.state_dict()[key], one) for key, one in reads.items())


def test_reads_stay_fixed_until_nothing_needs_them(tmp_path: Path) -> None:
    base, aim, _ = fixed()
    trained = len(list(aimgraph.transform(base, build("residual")[1], start="zero_values").aim.parameters()))
    aim.add_memory_set("v", share_reads=True)
    aim.remove_memory_set("v")
    assert names_of(aim) == [VALUE]
    aim.add_memory_set("v", share_reads=True)
    aimgraph.freeze_reads(aim, False)
    assert names_of(aim) == [VALUE, "aim.sets.v.memory.source.value"]
    aim.remove_memory_set("v")
    assert len(names_of(aim)) == trained
    aimgraph.freeze_reads(aim)
    assert names_of(copy.deepcopy(aim)) == [VALUE]
    assert names_of(aimgraph.refit(aim)) == [VALUE]
    aimgraph.save(aim, tmp_path)
    loaded = aimgraph.load(tmp_path, base)
    assert names_of(loaded) == [VALUE]
    for module in (loaded, copy.deepcopy(aim), aimgraph.refit(aim)):
        assert len(names_of(aimgraph.freeze_reads(module, False))) == trained


def test_reads_of_zero_cannot_be_fixed() -> None:
    base, x = build("residual")
    with pytest.raises(ConfigError, match=r'freeze_reads: .* all zero.* transform with start="zero_values"'):
        aimgraph.freeze_reads(aimgraph.transform(base, x, start="zero_reads"))
    with pytest.raises(ConfigError, match="freeze_reads can't freeze a part of a weight"):
        aimgraph.freeze_reads(aimgraph.transform(base, x, start="zero_values", lowering="concat"))
    with pytest.raises(PlanError, match="transform"):
        aimgraph.freeze_reads(base)
    trained = aimgraph.transform(base, x, start="zero_reads")
    with torch.no_grad():
        trained.aim.memory.reads.down.weight[0, 0] = 1
    assert names_of(aimgraph.freeze_base(aimgraph.freeze_reads(trained))) == [VALUE]


def test_a_memory_that_is_written_goes_on_training_its_updates() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, start="zero_values", shape=(2, 2, 3), **updates_for(base, x))
    aimgraph.freeze_reads(aimgraph.freeze_base(aim))
    assert {group["name"] for group in aimgraph.parameter_groups(aim)} == {"values", "updates"}


def test_parts_of_a_model_are_fixed_together() -> None:
    base, x = build("residual")
    whole = nn.Sequential(base, nn.Conv2d(1, 1, 1))
    aim = aimgraph.transform(whole, x, start="zero_values", within="0")
    assert aimgraph.freeze_reads(aim) is aim
    assert [name for name in names_of(aim) if ".aim." in name] == [f"0.{VALUE}"]
