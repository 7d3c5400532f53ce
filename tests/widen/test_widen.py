"""Every way in which channels meet: what can grow does, and the function stays; what can't is named."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from tests.widen.nets import HELD, NETS


def randomised(model: nn.Module) -> nn.Module:
    """In float64, with statistics and scales that are not those of a start."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            with torch.no_grad():
                tensor.uniform_(0.3, 1.2) if tensor.dim() < 2 else tensor.normal_(0, 0.4)
    return model.double()


def net(name: str) -> tuple[nn.Module, Tensor]:
    make, shape, _ = NETS[name]
    return randomised(make()), torch.randn(3, *shape, dtype=torch.float64)


def check_same(model: nn.Module, wide: nn.Module, x: Tensor, *, train: bool = True) -> None:
    for mode in (False, True) if train else (False,):
        model.train(mode), wide.train(mode)
        torch.testing.assert_close(wide(x), model(x), rtol=0, atol=1e-12 * model(x).abs().max().item())


@pytest.mark.parametrize("name", NETS)
def test_every_group_grows_alone(name: str) -> None:
    model, x = net(name)
    groups = [group for group in aimgraph.widen_plan(model, x, parameters=1.0).groups if not group.reason]
    assert len(groups) == NETS[name][2]
    for group in groups:
        wide = aimgraph.widen(model, x, {group.layers[0]: group.step})
        assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in model.parameters())
        check_same(model, wide, x)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_all_groups_grow_together_unevenly(name: str, noise: float) -> None:
    model, x = net(name)
    groups = [group for group in aimgraph.widen_plan(model, x, parameters=1.0).groups if not group.reason]
    widths: dict[str, Any] = {group.layers[0]: group.step * (1 + 2 * (i % 3)) for i, group in enumerate(groups)}
    wide = aimgraph.widen(model, x, widths, noise=noise)
    check_same(model, wide, x)
    for group in groups:
        sizes = [wide.get_parameter(name).shape[axis] for name, axis, _ in group.members if "running" not in name]
        assert group.channels + widths[group.layers[0]] in sizes


@pytest.mark.parametrize(
    "name", sorted(set(NETS) - {"layer norm", "group norm", "mean over channels", "largest channel"})
)
def test_new_channels_that_nothing_reads(name: str) -> None:
    model, x = net(name)
    wide = aimgraph.widen(model, x, parameters=2.0, how="zero")
    assert sum(p.numel() for p in wide.parameters()) > sum(p.numel() for p in model.parameters())
    check_same(model, wide, x)


@pytest.mark.parametrize("name", HELD)
def test_what_cannot_grow_is_named(name: str) -> None:
    make, shape, reason = HELD[name]
    model, x = randomised(make()), torch.randn(3, *shape, dtype=torch.float64)
    plan = aimgraph.widen_plan(model, x, parameters=2.0)
    assert plan.widened == plan.parameters
    assert all(group.reason for group in plan.groups)
    assert reason in str([group.reason for group in plan.groups])
