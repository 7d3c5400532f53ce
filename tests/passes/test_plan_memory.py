"""Shapes, reads and budgets."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.errors import ConfigError, PlanError
from aimgraph.models_zoo import mlp, resnet50_keras
from aimgraph.planning.plan import Plan
from tests.marks import mostly_slow
from tests.nets import build
from tests.tracing.bases import X


def plan_of(name: str, **options: object) -> Plan:
    base, x = build(name)
    return aimgraph.plan(base, x, **options)


@pytest.mark.parametrize("options", [{}, {"updates": "stages"}, {"source": "ones_conv", "shape": (2, 2, 3)}])
@pytest.mark.parametrize("name", ["residual", "tokens", "conv3d", "linear", "transposed_grouped", "windows", "ranks"])
def test_planned_parameters_are_the_real_ones(name: str, options: dict[str, object]) -> None:
    base, x = build(name)
    aim = aimgraph.transform(base, x, **options)
    added = sum(p.numel() for n, p in aim.named_parameters() if n.startswith("aim."))
    assert aimgraph.plan(aim).added_parameters == added
    assert aimgraph.plan(base, x, **options).memories == aimgraph.plan(aim).memories


@pytest.mark.parametrize("budget", mostly_slow([0.003, 0.0126, 0.05, 0.3, 2.0], kept=[0.0126]))
@pytest.mark.parametrize(
    "name", mostly_slow(["residual", "tokens", "conv3d", "conv1d", "linear"], kept=["tokens", "conv1d", "linear"])
)
@pytest.mark.parametrize("updates", [None, "stages"])
def test_the_budget_is_solved_exactly(name: str, budget: float, updates: str | None) -> None:
    """Exhaustive search: the most channels that fit, on the smallest grid of more than one position."""
    plan = plan_of(name, budget=budget, updates=updates)
    memory = plan.memories[0]
    limit = budget * plan.base_parameters
    outer = memory.shape[:-1]
    fitting = [
        channels
        for channels in range(1, memory.shape[-1] + 40)
        if plan_of(name, shape=(*outer, channels), updates=updates).added_parameters <= limit
    ]
    assert memory.shape[-1] == max(fitting, default=1)
    if not fitting:
        assert "one channel, the least there is" in plan.notes[-1]
    grids = [c.grid for s in plan.sites for c in s.calls if math.prod(c.grid) > 1]
    assert math.prod(outer) == min(map(math.prod, grids), default=1)


def test_shape_of_an_mlp_is_flat() -> None:
    plan = aimgraph.plan(mlp(), torch.zeros(1, 784))
    assert plan.memories[0].shape == (8,)
    assert {read.channels for read in plan.memories[0].reads} == {8}


def test_channels_of_the_articles_network() -> None:
    """k = ceil(50,176 / P) at every grid of ResNet-50, as in the notebook."""
    config = aimgraph.AimConfig(shape=(7, 7, 1024), exclude=("head",))
    plan = aimgraph.plan(resnet50_keras(120, stem_stride=1), torch.zeros(1, 3, 224, 224), config=config)
    channels = {read.grid: read.channels for read in plan.memories[0].reads}
    assert channels == {(230, 230): 1, (112, 112): 4, (56, 56): 16, (28, 28): 64, (14, 14): 256}


def test_which_value_a_site_reads() -> None:
    plan = plan_of("conv2d", updates=("0",))
    reads = {read.site: [call.value for call in read.calls] for read in plan.memories[0].reads}
    assert reads == {"0": [0], "2": [1]}


def test_dead_updates_are_dropped_unless_a_state_keeps_them() -> None:
    dropped = plan_of("conv2d", updates=("0", "2")).memories[0]
    assert [u.spot.where for u in dropped.updates] == ["0"]
    assert [(d.path, d.reason) for d in dropped.dropped] == [("2", "no site reads it afterwards and no state keeps it")]
    kept = plan_of("conv2d", updates=("0", "2"), carry="state").memories[0]
    assert [u.spot.where for u in kept.updates] == ["0", "2"]
    assert not kept.dropped


def test_windows_read_the_batch_mean_and_positions_the_source() -> None:
    memory = plan_of("windows", updates=("stem",)).memories[0]
    call = next(read for read in memory.reads if read.site == "mix").calls[0]
    assert (call.value, call.mean, call.note) == (1, True, "its batch is 4 x the model's: reads the batch mean")
    memory = plan_of("position", updates=("mix",)).memories[0]
    call = next(read for read in memory.reads if read.site == "position").calls[0]
    assert (call.value, call.note) == (0, "its input does not depend on the batch: reads the initial value")
    pooled = plan_of("windows", updates=("stem",), pool="batch").memories[0]
    assert not any(call.mean for read in pooled.reads for call in read.calls)


def test_a_layer_keeps_its_channels_at_other_resolutions() -> None:
    read = next(r for r in plan_of("shared", shape=(4, 4, 20)).memories[0].reads if r.site == "conv")
    assert (read.channels, [call.spec.grid for call in read.calls]) == (-(-320 // 48), [(8, 6), (8, 6)])


def test_a_call_of_another_rank_has_a_read_weight_of_its_own() -> None:
    reads = [r for r in plan_of("ranks", shape=(5, 1, 4)).memories[0].reads if r.site == "mix"]
    assert [(r.name, r.channels, r.lowering) for r in reads] == [("mix", 4, "split"), ("mix.call_1", 20, "split")]
    notes = [r.note for r in plan_of("ranks", shape=(5, 1, 4), lowering="concat").memories[0].reads]
    assert "called at several ranks" in notes[0]


@pytest.mark.parametrize(
    ("options", "sites"),
    [
        ({"sites": ("stem.*",)}, ["stem.0"]),
        ({"sites": "re:block\\.\\d"}, ["block.0", "block.3"]),
        ({"sites": lambda path, module: isinstance(module, nn.Linear)}, ["head"]),
        ({"exclude": ("block.*", "head")}, ["stem.0", "down"]),
    ],
)
def test_choosing_sites(options: dict[str, object], sites: list[str]) -> None:
    assert [read.site for read in plan_of("residual", **options).memories[0].reads] == sites


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("residual", {"sites": ("bloc.*",)}, r"sites: 'bloc\.\*' matches nothing; near misses: block"),
        ("residual", {"exclude": ("heads",)}, r"exclude: 'heads' matches nothing; near misses: head"),
        ("residual", {"sites": "qqq"}, r"'qqq' matches nothing; there are: stem\.0, block\.0, block\.3, down, head"),
        ("residual", {"exclude": ("*",)}, r"exclude leaves no layer to read; 5 are excluded"),
        ("residual", {"sites": lambda *_: False}, r"the callable given as sites accepts none of 5 layers"),
        ("activated", {"sites": ("0",)}, r"'0' matches only layers that can't read: 0 \(its own forward calls"),
    ],
)
def test_patterns_that_match_nothing(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_of(name, **options)


def test_nothing_to_read() -> None:
    with pytest.raises(PlanError, match="has no convolution or linear layer"):
        aimgraph.plan(nn.ReLU(), torch.zeros(2, 3))
    only = nn.Sequential(nn.Conv2d(3, 3, 1))
    only[0].register_forward_hook(lambda *_: None)
    with pytest.raises(PlanError, match=r"has 1 convolutions and linear layers, but none can read(.|\n)*0 \(Conv2d\)"):
        aimgraph.plan(only, torch.zeros(2, 3, 6, 6))


def test_conflicting_lowerings() -> None:
    configs = [aimgraph.AimConfig(name="a", lowering="concat"), aimgraph.AimConfig(name="b")]
    base, x = build("conv2d")
    with pytest.raises(ConfigError, match=r"0: memory 'a' asks for lowering='concat' and memory 'b' for 'split'"):
        aimgraph.plan(base, x, config=configs)


def test_an_update_that_only_batch_free_layers_follow_is_dropped() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.position = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.mix(x))
            return y + self.position(self.mix.bias[None])

    memory = aimgraph.plan(Net(), X, updates=("mix",), shape=(3,)).memories[0]
    assert not memory.updates
    assert [item.path for item in memory.dropped] == ["mix"]


class _TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.head(torch.relu(self.mix(self.table(index))))


class _UsedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.head(self.mix(x)), self.mix.weight.t()) + self.mix.weight.square().mean()


@pytest.mark.parametrize(
    ("kind", "x", "site", "reason"),
    [
        (_TiedEmbedding, torch.zeros(2, 5, dtype=torch.long), "head", "its weight belongs to another module, too"),
        (_UsedWeight, X, "mix", "other code uses its weight, too"),
    ],
)
def test_weights_that_something_else_needs_are_not_widened(kind: type, x: Tensor, site: str, reason: str) -> None:
    base = kind()
    aim = aimgraph.transform(base, x, lowering="concat")
    reads = {read.site: (read.lowering, read.note) for read in aimgraph.plan(aim).memories[0].reads}
    assert reads.pop(site) == ("split", f"{reason}, so it can't be widened")
    functions = {name for name in reads if name.startswith("linear_")}
    assert {form for name, (form, _) in reads.items() if name not in functions} == {"concat"}
    assert {reads[name] for name in functions} <= {("split", "a function is called, there is no layer to widen")}
    assert torch.allclose(aim(x), base(x), atol=1e-6)
    bare = aimgraph.strip(aim)
    assert sum(p.numel() for p in bare.parameters()) == sum(p.numel() for p in base.parameters())
