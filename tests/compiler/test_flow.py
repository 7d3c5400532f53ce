"""The base's graph as steps."""

import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.planning.flow import Step
from tests.nets import build


def edges(steps: tuple[Step, ...]) -> list[tuple[str, str]]:
    return [(steps[source].path or "input", step.path or step.kind) for step in steps for source in step.inputs]


def test_a_residual_network_has_its_layers_and_the_places_where_branches_meet() -> None:
    base, x = build("residual")
    flow = aimgraph.plan(base.eval(), x).flow
    layers = [step.path for step in flow if step.kind == "layer"]
    assert layers == ["stem.0", "block.0", "block.3", "down", "head"]
    assert [step.kind for step in flow][:1] + [step.kind for step in flow][-1:] == ["input", "output"]
    joins = {step.path for step in flow if step.kind == "join"}
    assert "add" in joins
    assert {("stem.0", "add"), ("add", "down"), ("head", "output")} <= set(edges(flow))
    (stem,) = (step for step in flow if step.path == "stem.0")
    assert stem.shape == (-1, 8, 8, 8)


def test_a_plan_as_json_does_not_hold_it() -> None:
    base, x = build("residual")
    assert "flow" not in aimgraph.plan(base, x).to_dict()


def test_a_shared_layer_is_a_step_at_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return self.head(self.layer(y.relu()) + y)

    flow = aimgraph.plan(Twice(), torch.randn(2, 4)).flow
    assert [step.path for step in flow] == ["x", "layer", "layer", "add", "head", ""]
    assert edges(flow) == [
        ("x", "layer"),
        ("layer", "layer"),
        ("layer", "add"),
        ("layer", "add"),
        ("add", "head"),
        ("head", "output"),
    ]


def test_sizes_that_change_with_the_batch_are_told() -> None:
    base, x = build("windows")
    sizes = [step.shape[0] for step in aimgraph.plan(base, x).flow if step.shape]
    assert set(sizes) == {-1, -4}


def test_a_module_that_is_one_call_is_one_step_with_its_layers() -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x.sum().item() > 0 else self.b(x)

    base = nn.Sequential(nn.Linear(4, 4), Decides())
    (step,) = (step for step in aimgraph.plan(base, torch.ones(2, 4)).flow if step.kind == "opaque")
    assert step.path == "1"
    assert set(step.layers) == {"1.a", "1.b"}
