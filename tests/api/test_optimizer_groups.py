"""What an optimiser is given."""

import importlib
from typing import Any

import pytest
import torch
from torch import nn

import aimgraph
from aimgraph import ConfigError, PlanError
from aimgraph.models_zoo.loader import import_torchvision
from tests.nets import build


def names(groups: list[dict[str, Any]]) -> list[str]:
    return [group["name"] for group in groups]


def test_values_reads_updates_and_what_else_is_trained() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, updates="stages")
    groups = aimgraph.parameter_groups(aim, lr=0.1, values_lr=0.5, weight_decay=0.01)
    assert names(groups) == ["values", "reads", "updates", "base"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.5, 0.0), *[(0.1, 0.01)] * 3]
    assert groups[0]["params"] == [aim.get_parameter("aim.memory.source.value")]
    given = [id(one) for group in groups for one in group["params"]]
    assert sorted(given) == sorted(map(id, aim.parameters()))
    aimgraph.freeze_base(aim)
    assert names(aimgraph.parameter_groups(aim)) == ["values", "reads", "updates"]
    aim.head.requires_grad_(True)
    *_, last = aimgraph.parameter_groups(aim)
    assert list(map(id, last["params"])) == list(map(id, aim.head.parameters()))
    assert last.keys() == {"params", "name"}


def test_what_is_fixed_is_left_out() -> None:
    base, x = build("residual")
    aim = aimgraph.freeze_base(aimgraph.transform(base, x, source="coordinates", shape=(4, 4, 2), trainable=False))
    assert names(aimgraph.parameter_groups(aim)) == ["reads"]
    assert all(".reads." in name for name, _ in aimgraph.trainable_parameters(aim))
    assert aim.get_parameter("aim.memory.source.value") in set(aimgraph.memory_parameters(aim))


def test_parameters_with_several_names_come_once() -> None:
    base = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    base[2].weight = base[0].weight
    aim = aimgraph.transform(base, torch.zeros(2, 4))
    given = [id(one) for group in aimgraph.parameter_groups(aim) for one in group["params"]]
    assert len(given) == len(set(given)) == len(list(aim.parameters()))


def test_sets_and_parts() -> None:
    base, x = build("linear")
    aim = aimgraph.transform(base, x, start="zero_values")
    aim.add_memory_set("b", share_reads=True)
    whole = aimgraph.freeze_base(aimgraph.transform(nn.Sequential(base), x, within="0"))
    assert [len(group["params"]) for group in aimgraph.parameter_groups(aimgraph.freeze_base(aim))] == [2]
    assert names(aimgraph.parameter_groups(whole)) == ["values", "reads"]
    assert all(name.startswith("0.aim.memory.") for name, _ in aimgraph.trainable_parameters(whole))


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD], ids=lambda make: make.__name__)
def test_optimisers_of_torch(make: Any) -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, updates="stages")
    optimiser = make(aimgraph.parameter_groups(aim, lr=0.1, values_lr=0.5), lr=0.2)
    assert [group["lr"] for group in optimiser.param_groups] == [0.5, 0.1, 0.1, 0.1]
    before = aim.get_parameter("aim.memory.reads.head.weight").detach().clone()
    aim(x).square().sum().backward()
    optimiser.step()
    assert not torch.equal(before, aim.get_parameter("aim.memory.reads.head.weight"))


def test_optimisers_of_timm() -> None:
    import_torchvision()  # timm imports it
    optim = importlib.import_module("timm.optim")
    base, x = build("residual")
    groups = aimgraph.parameter_groups(aimgraph.transform(base, x), lr=0.1, values_lr=0.5, weight_decay=0.01)
    made = optim.create_optimizer_v2(groups, opt="adamw", lr=0.3, weight_decay=0.05)
    settings = [(group["lr"], group["weight_decay"]) for group in made.param_groups]
    assert settings == [(0.5, 0.0), (0.1, 0.01), (0.1, 0.01)]


def test_counts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    base, x = build("linear")
    aim = aimgraph.freeze_base(aimgraph.transform(base, x, shape=(4,)))
    aimgraph.print_trainable_parameters(aim)
    trained = 4 + 7 * 4 + 3 * 4
    total = trained + sum(one.numel() for one in base.parameters())
    assert capsys.readouterr().out == (
        f"trainable parameters: {trained} of {total} ({trained / total:.4%}): values 4, reads 40, updates 0, base 0\n"
    )
    assert sum(one.numel() for _, one in aimgraph.trainable_parameters(aim)) == trained


@pytest.mark.parametrize("call", [aimgraph.parameter_groups, aimgraph.trainable_parameters])
def test_what_is_refused(call: Any) -> None:
    base, x = build("residual")
    with pytest.raises(PlanError, match="has no memory"):
        call(base)
    with pytest.raises(ConfigError, match="can't be told from the base's"):
        call(aimgraph.transform(base, x, lowering="concat"))
    for value in (-1, "fast", float("nan"), True):
        with pytest.raises(ConfigError, match=r"parameter_groups\(values_lr=.*\): give a finite number, 0 or more"):
            aimgraph.parameter_groups(aimgraph.transform(base, x), values_lr=value)  # type: ignore[arg-type]
