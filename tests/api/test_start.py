"""Both starts that promise it compute what the base computes, bit for bit, and let every part of the memory learn."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph import BlockSpec, ConfigError, ReadSpec, SourceSpec
from aimgraph.copies import copy_module
from aimgraph.planning.start import REACH, SCALES
from aimgraph.runtime.start import Start
from tests.nets import NETS, build, run, updates_for

STARTS = ("zero_reads", "zero_values")
VARIANTS: dict[str, dict[str, Any]] = {
    "replace": {},
    "gated": {"mode": "gated"},
    "pooled": {"pool": "batch"},
    "state": {"carry": "state"},
    "gated state": {"mode": "gated", "carry": "state", "pool": "batch"},
    "written in eval": {"carry": "state", "write_in_eval": True},
}


def check_identity(base: nn.Module, aim: nn.Module, x: Tensor) -> None:
    """Outputs and buffers over two batches, in eval and in train mode, in the base's type and under autocast."""
    for train in (False, True):
        for mixed in (False, True):
            one, other = copy_module(base).train(train), copy_module(aim).train(train)
            for batch in (x, torch.cat([x, x[:1] * 0.5])):
                with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                    try:
                        expected = run(one, batch)
                    except RuntimeError:  # an operation of the base takes no bfloat16
                        assert mixed
                        break
                    assert torch.equal(expected, run(other, batch)), (train, mixed)
            buffers = dict(other.named_buffers())
            assert all(torch.equal(value, buffers[name]) for name, value in one.named_buffers())


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NETS)
def test_identity_of_every_layer_kind(name: str, start: str) -> None:
    base, x = build(name)
    aim = aimgraph.transform(base, x, start=start)
    check_identity(base, aim, x)
    zero = "reads" if start == "zero_reads" else "source"
    for path, parameter in aim.get_submodule("aim.memory").named_parameters():
        assert bool(parameter.any()) != path.startswith(zero), path


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["residual", "tokens", "linear"])
def test_identity_with_updates(name: str, variant: str, start: str) -> None:
    base, x = build(name)
    options = VARIANTS[variant] | updates_for(base, x)
    aim = aimgraph.transform(base, x, start=start, shape=(2, 2, 3), **options)
    check_identity(base, aim, x)
    assert aimgraph.verify(base, aim).ok


@pytest.mark.parametrize("start", STARTS)
def test_gradients_of_the_base_are_unchanged(start: str) -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, start=start, updates="stages")
    for module in (base, aim):
        run(module.train(), x).square().sum().backward()  # type: ignore[attr-defined]
    seen = dict(aim.named_parameters())
    assert all(torch.equal(one.grad, seen[path].grad) for path, one in base.named_parameters())  # type: ignore[arg-type]


def test_verify_tells_a_memory_that_adds_something() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, start="zero_values")
    checks = {check.name for check in aimgraph.verify(base, aim).checks}
    assert "output, with memory (train)" in checks
    with torch.no_grad():
        aim.get_parameter("aim.memory.source.value")[0] = 1.0
    assert "output, with memory (train)" not in {check.name for check in aimgraph.verify(base, aim).checks}


def test_scales() -> None:
    base, x = build("residual")
    values = "aim.memory.source.value"
    for scale in (0.5, 3.0):
        aim = aimgraph.transform(base, x, start="zero_reads", start_scale=scale, shape=(40, 40, 3))
        assert float(aim.get_parameter(values).detach().std()) == pytest.approx(scale, rel=0.05)
    one, other = (aimgraph.transform(base, x, start="zero_values", start_scale=scale) for scale in (1.0, 2.0))
    for path, read in one.get_submodule("aim.memory.reads").named_parameters():
        assert torch.equal(read * 2, other.get_parameter(f"aim.memory.reads.{path}"))
    assert not one.get_parameter(values).any()


def test_the_default_scale_keeps_a_first_step_small() -> None:
    """What all sites see of the memory, added up, times the scale is at most REACH; a small network has the largest."""
    base, x = build("residual")
    few = aimgraph.plan(base, x, shape=(2, 2, 1), sites=("stem.0",)).memories[0]
    assert few.scale == SCALES["zero_reads"]
    assert few.reads[0].inputs == 9
    many = aimgraph.plan(base, x, shape=(32, 32, 8)).memories[0]
    assert many.scale == pytest.approx(REACH / sum(read.inputs for read in many.reads))
    assert many.scale < 0.5
    aim = aimgraph.transform(base, x, shape=(32, 32, 8))
    assert float(aim.get_parameter("aim.memory.source.value").detach().std()) == pytest.approx(many.scale, rel=0.1)
    for start in ("zero_values", "drawn"):
        assert aimgraph.plan(base, x, shape=(32, 32, 8), start=start).memories[0].scale == SCALES[start]
        assert aimgraph.plan(base, x, start=start, start_scale=0.5).memories[0].scale == 0.5


def test_a_layer_that_is_called_again_moves_the_output_again() -> None:
    base, x = build("shared")
    shared = aimgraph.plan(base, x, shape=(32, 32, 8)).memories[0]
    calls = sum(read.inputs * len(read.calls) for read in shared.reads)
    assert max(len(read.calls) for read in shared.reads) > 1
    assert shared.scale == pytest.approx(REACH / calls)


@pytest.mark.parametrize("start", ["zero_values", "drawn"])
def test_the_draw_of_a_read_depends_on_no_other(start: str) -> None:
    base, x = build("residual")
    options: dict[str, Any] = {"start": start, "shape": (2, 2, 3)}
    whole, alone = aimgraph.transform(base, x, **options), aimgraph.transform(base, x, sites=("block.3",), **options)
    path = "aim.memory.reads.block.3.weight"
    assert torch.equal(whole.get_parameter(path), alone.get_parameter(path))
    other = aimgraph.transform(base, x, **options, seed=1)
    assert not torch.equal(whole.get_parameter(path), other.get_parameter(path))


def test_draws_are_uniform_numbers_of_the_cpu() -> None:
    """The first numbers of a stream, as every machine draws them."""
    drawn = Start("zero_values", 1.0, "0/memory").uniform((4,), 1.0, "reads/stem")
    generator = torch.Generator().manual_seed(11620812241125847)
    assert torch.equal(drawn, torch.rand(4, generator=generator) * 2 - 1)
    with torch.device("meta"):
        assert torch.equal(Start("zero_values", 1.0, "0/memory").uniform((4,), 1.0, "reads/stem"), drawn)


def test_a_transform_below_another_default_device() -> None:
    base, x = build("residual")
    expected = aimgraph.transform(base, x, start="zero_values", updates="stages").state_dict()
    with torch.device("meta"):
        seen = aimgraph.transform(base, x, start="zero_values", updates="stages").state_dict()
    assert all(torch.equal(value, seen[key]) for key, value in expected.items())


class OwnSource(nn.Module):
    def __init__(self, spec: SourceSpec) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.ones(spec.size)), nn.Parameter(torch.ones(spec.size))

    def forward(self) -> Tensor:
        return (self.left * self.right).unsqueeze(0)


class ZeroedSource(OwnSource):
    def zero_(self) -> None:
        self.left.zero_()


class OwnBlock(nn.Module):
    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.features, spec.size)

    def forward(self, memory: Tensor, features: Tensor) -> Tensor:
        return memory + self.layer(features.reshape(*features.shape[:2], -1).mean(2))


class ZeroedBlock(OwnBlock):
    def zero_(self) -> None:
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)


class BiasedRead(nn.Module):
    def __init__(self, spec: ReadSpec) -> None:
        super().__init__()
        self.grid, self.mix = spec.grid, nn.Linear(spec.size, spec.positions)

    def forward(self, memory: Tensor) -> Tensor:
        return self.mix(memory).reshape(-1, *self.grid, 1)


def test_parts_of_your_own() -> None:
    base, x = build("residual")
    own: dict[str, Any] = {"start": "zero_values", "shape": (2, 2, 3), "updates": "stages"}
    aim = aimgraph.transform(base, x, source=ZeroedSource, block=ZeroedBlock, mode="gated", **own)
    check_identity(base, aim, x)
    assert aimgraph.verify(base, aim).ok
    for wrong, named in (
        ({"source": OwnSource}, r"a source that gives zeros at the start, and OwnSource does not: .* zero_\(\)"),
        ({"block": OwnBlock}, r"a block that gives zeros at the start, and OwnBlock does not: .* zero_\(\)"),
        ({"read": BiasedRead}, "a read that shows zeros as zeros, and BiasedRead does not"),
    ):
        with pytest.raises(ConfigError, match=rf"memory 'memory': start=.zero_values. needs {named}"):
            aimgraph.transform(base, x, **own | wrong)


@pytest.mark.parametrize("shape", [(2, 2, 3), (7,)])
def test_values_of_a_layer_fed_with_ones(shape: tuple[int, ...]) -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, source="ones_conv", shape=shape, start="zero_values")
    check_identity(base, aim, x)
    run(aim, x).square().sum().backward()  # type: ignore[attr-defined]
    assert all(bool(one.grad.any()) for one in aim.get_submodule("aim.memory.source").parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("start", STARTS)
def test_refit_leaves_a_memory_that_can_learn(start: str) -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, start=start, updates="stages")
    aim.head = nn.Linear(aim.head.in_features, 3)
    again = aimgraph.refit(aim).eval()
    assert torch.equal(again(x), aimgraph.strip(again)(x))
    assert bool(again.get_parameter("aim.memory.reads.head.weight").any()) == (start == "zero_values")
