"""An optimiser of a model, carried on to the widened one."""

from typing import Any

import pytest
import torch
from torch import nn, optim

import aimgraph

X = torch.randn(16, 5, dtype=torch.float64)
Y = torch.randn(16, 2, dtype=torch.float64)


def trained(kind: type[optim.Optimizer], **options: Any) -> tuple[nn.Module, optim.Optimizer]:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    optimizer = kind([{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2].parameters()}], **options)
    for _ in range(5):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: optim.Optimizer) -> None:
    optimizer.zero_grad()
    nn.functional.mse_loss(model(X), Y).backward()
    optimizer.step()


KINDS: list[tuple[type[optim.Optimizer], dict[str, Any]]] = [
    (optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    (optim.Adam, {"lr": 0.01, "amsgrad": True}),
    (optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    (optim.RMSprop, {"lr": 0.01, "centered": True}),
    (optim.Adagrad, {"lr": 0.01}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_moments_are_those_of_gradients_that_copies_get(kind: type[optim.Optimizer], options: dict[str, Any]) -> None:
    model, old = trained(kind, **options)
    wide = aimgraph.widen(model, X, {"0": 7})
    new = aimgraph.widen_optimizer(old, wide)
    assert type(new) is kind
    assert [{**group, "params": 0} for group in new.param_groups] == [{**g, "params": 0} for g in old.param_groups]
    source = torch.arange(6).repeat_interleave(torch.tensor([3, 2, 2, 2, 2, 2]))  # copies lie behind their channel
    for one in (model, wide):
        one.zero_grad()
        nn.functional.mse_loss(one(X), Y).backward()
    for (name, a), b in zip(model.named_parameters(), wide.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        axis = 0 if name.startswith("0") else 1
        own = [one for one in (a.grad, *old.state[a].values()) if one.shape == a.shape]
        grown = own if name == "2.bias" else [one.index_select(axis, source) for one in own]
        share = b.grad / grown[0]  # what part of the gradient each copy gets now, and would have had all along
        kept = [key for key, value in old.state[a].items() if value.shape == a.shape]
        for key, value in zip(kept, grown[1:], strict=True):
            power = 2 if key in ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum") else 1
            torch.testing.assert_close(new.state[b][key], value * share**power, rtol=1e-8, atol=0)


def test_it_trains_on() -> None:
    model, old = trained(optim.Adam, lr=0.01)
    before = nn.functional.mse_loss(model(X), Y).item()
    wide = aimgraph.widen(model, X, parameters=2.0, noise=0.2)
    new = aimgraph.widen_optimizer(old, wide)
    for _ in range(60):
        step(wide, new)
    assert nn.functional.mse_loss(wide(X), Y).item() < before


def test_new_channels_start_without_moments() -> None:
    model, old = trained(optim.Adam, lr=0.01)
    wide = aimgraph.widen(model, X, {"0": 4}, how="zero")
    state = aimgraph.widen_optimizer(old, wide).state[wide.get_parameter("0.weight")]["exp_avg"]
    assert (state == 0).all(1).sum() == 4
    assert state.shape == (10, 5)


def test_what_has_no_number_for_each_weight_starts_anew() -> None:
    model, old = trained(optim.Adafactor, lr=0.01)
    wide = aimgraph.widen(model, X, {"0": 4})
    with pytest.warns(UserWarning, match=r"0.weight \(row_var, of another shape\).* starts anew"):
        new = aimgraph.widen_optimizer(old, wide)
    step(wide, new)


def test_only_the_optimiser_of_the_model_that_was_widened() -> None:
    model, old = trained(optim.SGD, lr=0.01)
    other = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    with pytest.raises(aimgraph.PlanError, match="none of the model that was widened"):
        aimgraph.widen_optimizer(old, aimgraph.widen(other, X, parameters=1.5))
    with pytest.raises(aimgraph.PlanError, match="was not widened in this process, or is a copy"):
        aimgraph.widen_optimizer(old, other)
    with pytest.raises(aimgraph.PlanError, match=r"a torch.optim.Optimizer is needed, this is a int"):
        aimgraph.widen_optimizer(3, other)  # type: ignore[arg-type]
    assert model is not other
