"""What a benchmark counts and reports."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import aimgraph
from aimgraph.bench import FORMS, Setting, bench, draw_bench, print_bench
from aimgraph.bench.footprint import peak_bytes, saved_bytes
from aimgraph.errors import ConfigError

NET = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
X = torch.zeros(4, 3, 8, 8)
MEMORY = aimgraph.AimConfig(shape=(4, 4, 1))


def test_a_report_holds_every_form_and_what_it_costs() -> None:
    report = bench(NET, X, [MEMORY], Setting(rounds=2))
    assert tuple(report.forms) == FORMS
    assert (report.values, report.sites, report.inputs) == ([16], 2, [[4, 3, 8, 8]])
    base, floor, split = (report.forms[name] for name in ("base", "floor", "split"))
    assert base.parameters == sum(p.numel() for p in NET.parameters())
    assert floor.parameters == base.parameters + 8 * 36 + 4
    assert split.parameters == base.parameters + 16 + 8 * 9 + 16 * 4
    assert base.flops == floor.flops == 2 * 4 * (8 * 27 * 36 + 8 * 36 * 4)
    assert split.flops == base.flops + 2 * (8 * 9 * 36 + 16 * 4)
    assert all((cost.saved is None) == (form not in FORMS[:4]) for form, cost in report.forms.items())
    assert base.saved is not None
    assert split.saved is not None
    assert 0 < base.saved < split.saved < base.saved + 4000
    for form, cost in report.forms.items():
        timed = {"inference"} | ({"training step", "forward and backward"} if form in FORMS[:4] else set())
        assert set(cost.seconds) == timed
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in cost.seconds.values())
    data = json.loads(json.dumps(report.to_dict()))
    assert data["ratios"]["inference"].keys() >= {"folded / floor", "fused folded / fused floor"}
    assert "folded / floor" not in data["ratios"]["training step"]


def test_a_report_is_shown_and_drawn(tmp_path: Path) -> None:
    report = bench(NET, X, [MEMORY], Setting(rounds=1), forms=("base", "floor", "split", "fused base", "fused folded"))
    console = Console(width=160, record=True)
    print_bench(report, console)
    text = console.export_text()
    for word in ("16 values read at 2 sites", "split / floor", "fused folded / fused base", "saved, MB"):
        assert word in text
    assert draw_bench({"net": report}, tmp_path / "bench.png").stat().st_size > 10_000


def test_training_and_inference_can_be_measured_alone() -> None:
    training = bench(NET, X, [MEMORY], Setting(rounds=1, inference=False))
    assert tuple(training.forms) == FORMS[:4]
    inference = bench(NET, X, [MEMORY], Setting(rounds=1, training=False, autocast="bfloat16", channels_last=True))
    assert all(set(cost.seconds) == {"inference"} for cost in inference.forms.values())


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="device='nonsense'"):
        bench(NET, X, [MEMORY], Setting(device="nonsense"))


def test_bytes_saved_and_allocated() -> None:
    layer, x = nn.Linear(256, 128), torch.randn(64, 256)
    assert saved_bytes(layer, lambda: layer(x).sigmoid()) == 4 * (64 * 256 + 64 * 128)
    small, cpu = 100, torch.device("cpu")  # a number on the way is a tensor, too
    assert 8000 <= peak_bytes(lambda: torch.empty(1000).add(1), cpu) < 8000 + small
    assert 12000 <= peak_bytes(lambda: torch.stack([torch.empty(500) for _ in range(3)]), cpu) < 12000 + small
    assert 4000 <= peak_bytes(lambda: [torch.empty(1000).sum() for _ in range(3)], cpu) < 4000 + small


def test_the_model_stays_as_it_was() -> None:
    before = {name: value.clone() for name, value in NET.state_dict().items()}
    NET.train()
    bench(NET, X, [MEMORY], Setting(rounds=1), forms=("base", "split"))
    assert NET.training
    assert all(torch.equal(value, before[name]) for name, value in NET.state_dict().items())
