"""Every way in which channels meet: what can grow does, and the function stays; what can't is named."""

from dataclasses import dataclass
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


def test_a_depthwise_layer_names_the_group_it_follows() -> None:
    model, x = net("depthwise")
    wide = aimgraph.widen(model, x, {"1": 2})
    assert wide.get_parameter("0.weight").shape[0] == 6
    assert wide.get_submodule("1").groups == 6
    check_same(model, wide, x)


@pytest.mark.parametrize("widths", [{"*": 1.5, "3": 3.0}, {"re:[03]": 1.5, "3": 10}])
def test_a_later_pattern_counts(widths: dict[str, float]) -> None:
    model, x = net("chain")
    wide = aimgraph.widen(model, x, widths)
    assert [wide.get_parameter(f"{name}.weight").shape[0] for name in "03"] == [9, 15]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": {"conv": 2.0}}, "widths: 'conv' matches nothing; there are: 0, 3, 7"),
        ({"widths": {"9": 2.0}}, "matches only layers that can't be widened: 9 .*the model gives them out"),
        ({"widths": {"0": 0.5}}, "a factor is at least 1.0"),
        ({"widths": {"0": -1}}, "channels are added, never taken away"),
        ({"widths": {"0": True}}, "give a factor such as 1.5"),
        ({"widths": {"0": float("nan")}}, "a factor is at least 1.0"),
        ({"widths": {}}, "widths={}: give a dict"),
        ({"widths": 3}, "widths=3: give a dict"),
        ({}, "a budget for the whole"),
        ({"widths": {"0": 2.0}, "parameters": 1.5}, "a budget for the whole"),
        ({"parameters": 0.9}, "give a factor such as 1.5"),
        ({"parameters": 10}, "the model has 1,051 already"),
        ({"parameters": "many"}, "parameters='many'"),
        ({"parameters": 1.5, "how": "split"}, "how='split'"),
        ({"parameters": 1.5, "noise": 2.0}, "noise=2.0"),
        ({"parameters": 1.5, "noise": 0.1, "how": "zero"}, "noise= is of copies"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    model, x = net("chain")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(aimgraph.AimgraphError, match=message):
        aimgraph.widen(model, x, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_channels_that_come_several_at_a_time() -> None:
    model, x = net("groups")
    with pytest.raises(aimgraph.PlanError, match=r"2 gets 3 channels, .* come 4 at a time .*add 0 or 4"):
        aimgraph.widen(model, x, {"2": 3})


def test_a_group_that_grows_by_whole_factors_alone() -> None:
    model, x = net("layer norm")
    with pytest.raises(
        aimgraph.PlanError, match=r"0 grows by whole factors alone, 1.5 is none: give 2.0 \(native_layer"
    ):
        aimgraph.widen(model, x, {"0": 1.5})
    assert [group.added for group in aimgraph.widen_plan(model, x, {"*": 1.5}).groups] == [0, 3, 0]
    assert [group.added for group in aimgraph.widen_plan(model, x, {"*": 3.0}).groups] == [16, 12, 0]


def test_a_group_that_only_copies_exactly_is_left_to_new_channels() -> None:
    model, x = net("layer norm")
    with pytest.raises(aimgraph.PlanError, match="as they can only be copied exactly, all of them: native_layer_norm"):
        aimgraph.widen(model, x, {"0": 2.0}, how="zero")


@pytest.mark.parametrize("factor", [1.0, 1.2, 1.5, 3.0])
def test_a_budget_is_met(factor: float) -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(64 * 16, 10))
    wide = aimgraph.widen(model, torch.zeros(2, 3, 8, 8), parameters=factor)
    counts = [sum(p.numel() for p in one.parameters()) for one in (model, wide)]
    assert abs(counts[1] / counts[0] - factor) < 0.01


def test_mode_gradients_device_and_attributes_are_kept() -> None:
    model, x = net("chain")
    model.train(), model[1].eval()
    model[3].weight.requires_grad_(False)
    wide = aimgraph.widen(model, x, parameters=1.5)
    assert type(wide) is type(model)
    assert [m.training for m in wide.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in wide.parameters()] == [p.requires_grad for p in model.parameters()]
    assert wide[0].out_channels == wide[1].num_features == wide[3].in_channels == wide[0].weight.shape[0]
    assert wide[7].in_features == wide[3].out_channels * 16
    assert not {p.data_ptr() for p in wide.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 6)
            self.inner, self.outer = nn.Linear(6, 5), nn.Linear(5, 6)
            self.last = nn.Linear(6, 7, bias=False)
            self.last.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.outer(self.inner(self.table(x)).relu()))  # type: ignore[no-any-return]

    model, x = randomised(Tied()), torch.tensor([[0, 3], [6, 1]])
    wide = aimgraph.widen(model, x, parameters=1.5)
    assert isinstance(wide, Tied)
    assert wide.last.weight is wide.table.weight
    assert wide.inner.weight.shape[0] > 5
    check_same(model, wide, x)
    reasons = {group.layers[0]: group.reason for group in aimgraph.widen_plan(model, x, parameters=1.5).groups}
    assert "reads them, too" in reasons["table"]


def test_a_forward_that_decides_by_values_runs_on_values() -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            return self.last(hidden if float(x.sum()) > 1e9 else hidden.relu())  # type: ignore[no-any-return]

    model, x = randomised(Decides()), torch.randn(3, 4, dtype=torch.float64)
    wide = aimgraph.widen(model, x, {"first": 5})
    assert wide.get_parameter("first.weight").shape[0] == 11
    check_same(model, wide, x)


def test_a_forward_that_fails_is_named() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not today")

    with pytest.raises(aimgraph.TraceError, match=r"can't be followed: its forward fails .* not today"):
        aimgraph.widen(Fails(), torch.randn(3, 4), parameters=1.5)


def test_the_plan_shows_groups_members_and_reasons() -> None:
    model, x = net("layer norm")
    plan = aimgraph.widen_plan(model, x, {"3": 3})
    text = str(plan)
    assert "all or none, as copies" in text
    assert "native_layer_norm" in text
    assert "the model gives them out" in text
    assert plan.to_dict()["factor"] == plan.widened / plan.parameters > 1
    assert [group.added for group in plan.groups] == [0, 3, 0]


def test_outputs_in_a_structure_of_ones_own_are_given_out() -> None:
    @dataclass
    class Given:
        logits: Tensor

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Given:
            return Given(self.last(self.first(x).relu()))

    model, x = randomised(Net()), torch.randn(3, 4, dtype=torch.float64)
    wide = aimgraph.widen(model, x, parameters=2.0)
    assert wide.get_parameter("last.weight").shape[0] == 2
    torch.testing.assert_close(wide(x).logits, model(x).logits, rtol=0, atol=1e-12)
