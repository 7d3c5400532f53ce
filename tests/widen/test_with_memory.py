"""A transformed module is widened, memories and all; a widened one is transformed as any other."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from tests.widen.test_widen import randomised

X = torch.randn(3, 3, 16, 16, dtype=torch.float64)


def base() -> nn.Module:
    return randomised(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
        )
    )


def learned(**options: Any) -> aimgraph.AimModule:
    aim: aimgraph.AimModule = aimgraph.transform(base(), X, shape=(4, 4, 2), **options)
    for tensor in aimgraph.memory_parameters(aim):
        with torch.no_grad():
            tensor.normal_(0, 0.3)
    return aim


OPTIONS: list[dict[str, Any]] = [{}, {"updates": "stages"}, {"updates": "stages", "carry": "state"}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("how", ["copy", "zero"])
def test_a_transformed_module(options: dict[str, Any], how: Any) -> None:
    aim = learned(**options)
    wide = aimgraph.widen(aim, parameters=1.5, how=how)
    assert isinstance(wide, aimgraph.AimModule)
    assert wide.get_parameter("0.weight").shape[0] > 8
    for mode in (False, True):
        for _ in range(2):  # a carried state goes on
            same(wide.train(mode), aim.train(mode), X)
    same(aimgraph.strip(wide), aimgraph.strip(aim), X)
    assert aimgraph.plan(wide).memories[0].shape == aimgraph.plan(aim).memories[0].shape
    assert wide.state_dict().keys() == aim.state_dict().keys()


def same(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(one(x), other(x), rtol=0, atol=1e-12)


def test_all_memory_sets_grow() -> None:
    aim = learned()
    aim.add_memory_set("other")
    with torch.no_grad():
        for name, tensor in aim.named_parameters():
            if "sets" in name:
                tensor.normal_(0, 0.5)
    wide = aimgraph.widen(aim, parameters=1.5)
    for name in aim.memory_sets:
        aim.use(name)
        wide.use(name)
        same(wide, aim, X)


def test_a_widened_model_is_transformed_saved_and_loaded(tmp_path: Any) -> None:
    model = base()
    wide = aimgraph.widen(model, X, parameters=1.5)
    aim = aimgraph.transform(wide, X)
    assert torch.equal(aim.eval()(X), wide.eval()(X))
    loaded = aimgraph.load(aimgraph.save(aim, tmp_path / "memory"), wide)
    assert torch.equal(loaded.eval()(X), aim(X))


def test_it_trains_on_with_its_optimiser() -> None:
    aim = learned()
    old = torch.optim.Adam(aim.parameters(), lr=1e-3)
    aim(X).square().mean().backward()
    old.step()
    wide = aimgraph.widen(aim, parameters=1.5)
    new = aimgraph.widen_optimizer(old, wide)
    before = {name: tensor.detach().clone() for name, tensor in wide.named_parameters()}
    wide(X).square().mean().backward()
    new.step()
    assert all(not torch.equal(before[name], tensor) for name, tensor in wide.named_parameters())


def test_a_memory_keeps_its_own_sizes() -> None:
    plan = aimgraph.widen_plan(learned(updates="stages"), parameters=2.0)
    inner = [group for group in plan.groups if all(layer.startswith("aim.") for layer in group.layers)]
    assert inner
    assert all(group.reason for group in inner)


def test_what_is_not_a_plain_memory_is_refused() -> None:
    with pytest.raises(aimgraph.ConfigError, match="widen can't tell a changed layer from its read weights"):
        aimgraph.widen(aimgraph.transform(base(), X, lowering="concat"), parameters=1.5)
