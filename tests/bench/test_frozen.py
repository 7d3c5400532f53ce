"""Ways to train a little beside a frozen network, measured."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

from aimgraph.bench import FROZEN, Setting, bench, draw_bench, peak_alone, print_bench
from aimgraph.bench.frozen import build_frozen, trained
from aimgraph.cli.main import cli
from aimgraph.config import AimConfig
from aimgraph.errors import ConfigError
from tests.marks import needs_lora

NET = nn.Sequential(
    nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(8 * 16, 4)
)
X = torch.zeros(4, 3, 8, 8)
MEMORY = AimConfig(shape=(4, 4, 1))


def test_every_form_trains_its_own_parameters_and_keeps_what_it_needs() -> None:
    needs_lora()
    report = bench(NET, X, [MEMORY], Setting(rounds=2, inference=False), forms=FROZEN)
    assert tuple(report.forms) == FROZEN
    full, biases, lora, memory, lean = report.forms.values()
    assert full.parameters == sum(parameter.numel() for parameter in NET.parameters())
    assert biases.parameters == 8 + 8 + 8 + 4
    assert lora.parameters == (8 * 27 + 8 * 8) + (8 * 8 * 9 + 8) + (8 * 128 + 8 * 4)
    assert memory.parameters == lean.parameters == 16 + 8 * 9 + 8 * 9 + 16 * 4
    assert all(cost.saved is not None for cost in report.forms.values())
    assert lean.saved < 0.5 * memory.saved < 1.1 * full.saved  # type: ignore[operator]
    assert set(lean.seconds) == {"training step", "forward and backward"}
    assert ("lean", "memory") in report.pairs("training step")
    assert json.loads(json.dumps(report.to_dict()))["ratios"]["training step"].keys() >= {"lean / full", "lean / lora"}


def test_a_report_of_frozen_forms_is_shown_and_drawn(tmp_path: Path) -> None:
    report = bench(NET, X, [MEMORY], Setting(rounds=1, inference=False), forms=("full", "memory", "lean"))
    console = Console(width=160, record=True)
    print_bench(report, console)
    assert "lean / memory" in console.export_text()
    assert draw_bench({"net": report}, tmp_path / "bench.png").stat().st_size > 10_000


def test_a_step_moves_what_a_form_trains_and_nothing_else() -> None:
    needs_lora()
    for form, module in build_frozen(NET, X, [MEMORY]).items():
        module.train()
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        optimizer = torch.optim.SGD(trained(module), lr=0.1)
        module(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        named = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        moved = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
        statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        assert moved - named == (statistics if form == "full" else set())
        assert moved & named, form


def test_unknown_forms_are_refused() -> None:
    with pytest.raises(ConfigError, match="all of it"):
        build_frozen(NET, X, [MEMORY], ("all of it",))


@pytest.mark.slow
def test_a_peak_is_that_of_a_step() -> None:
    wide = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())
    wide.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)])
    x = torch.zeros(16, 3, 96, 96)
    full, lean = (peak_alone(wide, x, [MEMORY], Setting(), form) for form in ("full", "lean"))
    assert full is not None
    assert lean is not None
    assert 0 < lean < full


@pytest.mark.slow
def test_the_command_measures_each_peak_in_a_process_of_its_own(tmp_path: Path) -> None:
    asked = ["bench", "zoo/mlp", "--input", "8x784", "--frozen", "--rounds", "1", "--form", "full", "--form", "lean"]
    result = CliRunner().invoke(cli, [*asked, "--json", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    forms = json.loads((tmp_path / "bench.json").read_text())["forms"]
    assert all(forms[form]["peak"] > 0 for form in ("full", "lean"))
