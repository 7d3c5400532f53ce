"""Widening as a pass: before a memory, with what it declares, and what it declines."""

import pytest
import torch
from torch import nn

import aimgraph
from aimgraph.compiler.pipeline import Pipeline
from aimgraph.errors import PlanError
from aimgraph.passes import EMITTING, PLANNING, WidenChannels
from tests.passes.helpers import program_for
from tests.widen.test_widen import randomised

X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


def net() -> nn.Module:
    return randomised(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
        )
    ).eval()


def test_it_widens_and_declares_what_changes() -> None:
    program, _ = program_for(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(2, 4))
    result = Pipeline((WidenChannels({"0": 3}),), verify="full").run(program)
    assert result.modified
    assert result.changes.shapes == {"_0", "_1"}
    assert result.program.root.get_parameter("0.weight").shape == (9, 4)
    assert [item.reason for item in result.skipped] == ["the model gives them out"]


def test_nothing_to_do_changes_nothing() -> None:
    program, _ = program_for(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(2, 4))
    result = Pipeline((WidenChannels(parameters=1.0),)).run(program)
    assert not result.modified
    assert result.program.graphs is program.graphs


def test_a_memory_on_a_widened_base() -> None:
    base = net()
    aim = aimgraph.transform(base, X, passes=(WidenChannels(parameters=1.5), *PLANNING, *EMITTING), shape=(3, 3, 2))
    torch.testing.assert_close(aim(X), base(X), rtol=0, atol=1e-12)
    assert aim.get_parameter("0.weight").shape[0] > 8
    assert type(aimgraph.strip(aim)) is nn.Sequential
    torch.testing.assert_close(aimgraph.strip(aim)(X), base(X), rtol=0, atol=1e-12)
    assert len(aimgraph.plan(aim).sites) == 3
    assert "widen-channels" in str(aimgraph.plan(aim))


def test_alone_it_gives_a_module_without_a_memory() -> None:
    base = net()
    wide = aimgraph.transform(base, X, passes=WidenChannels({"3": 2.0}))
    torch.testing.assert_close(wide(X), base(X), rtol=0, atol=1e-12)
    assert wide.get_parameter("3.weight").shape[0] == 12


def test_it_comes_before_the_memory() -> None:
    with pytest.raises(PlanError, match="list it first"):
        aimgraph.transform(net(), X, passes=(*PLANNING, WidenChannels(parameters=1.5), *EMITTING))
