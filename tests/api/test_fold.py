"""Folded modules compute what they were folded from, without memory arithmetic."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.emit.folded_module import FoldedModule
from tests.nets import NETS, apart, build, randomise, run


def made(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Module, Tensor]:
    base, x = build(name)
    base, x = base.to(dtype), x.to(dtype)
    aim: nn.Module = randomise(aimgraph.transform(base, x, **options))
    return aim.eval(), x


def arithmetic(folded: nn.Module) -> list[str]:
    """Calls of sources and read layers."""
    targets = [str(node.target) for node in folded.graph.nodes]  # type: ignore[union-attr]
    return [target for target in targets if target.startswith("aim.") and ".maps." not in target]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", NETS)
def test_the_same_without_memory_arithmetic(name: str, dtype: torch.dtype, bound: float) -> None:
    aim, x = made(name, dtype)
    before = {key: value.clone() for key, value in aim.state_dict().items()}
    folded = aimgraph.fold(aim)
    assert isinstance(folded, FoldedModule)
    for other in (folded, folded.train(), copy.deepcopy(folded)):
        assert not any(module.training for module in other.modules())
        assert apart(other, aim, x) <= bound
    assert apart(folded, aim, torch.cat([x, x.flip(0), x])) <= bound
    reads = [read.name for memory in aimgraph.plan(aim).memories for read in memory.reads]
    folds = folded.folds
    assert sorted([*folds.biases, *folds.maps, *folds.left]) == sorted(reads)
    assert bool(folds.left) == bool(arithmetic(folded)) == (name == "output_size")
    assert all(torch.equal(value, before[key]) for key, value in aim.state_dict().items())
    shared = {id(tensor) for tensor in (*aim.parameters(), *aim.buffers())}
    assert not any(id(tensor) in shared for tensor in (*folded.parameters(), *folded.buffers()))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
def test_of_a_module_that_was_converted(dtype: torch.dtype, bound: float) -> None:
    aim, x = made("residual")
    folded = aimgraph.fold(aim.to(dtype))
    assert apart(folded, aim, x.to(dtype)) <= bound


def test_layers_under_several_names() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)])
            self.conv, self.norm = self.parts

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x)) + self.parts[0](x)

    x = torch.randn(2, 3, 8, 6)
    aim = randomise(aimgraph.transform(Named(), x)).eval()
    for fuse in False, True:
        folded = aimgraph.fold(aim, fuse_batchnorm=fuse)
        assert apart(folded, aim, x) <= 1e-5


def test_another_size_is_refused_or_folded_for() -> None:
    aim, x = made("residual")
    folded = aimgraph.fold(aim)
    larger = torch.randn(2, x.shape[1], x.shape[2] + 4, x.shape[3] + 2)
    with pytest.raises(aimgraph.ExampleInputError, match=r"stem\.0: memory was folded into a map of shape \[1, "):
        run(folded, larger)
    assert apart(aimgraph.fold(aim, larger), aim, larger) <= 1e-5


def test_a_part_of_a_model() -> None:
    base = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))})
    whole = randomise(aimgraph.transform(base, torch.zeros(2, 4), within="backbone")).eval()
    folded = aimgraph.fold(whole)
    x = torch.randn(5, 4)
    assert isinstance(folded["backbone"], FoldedModule)
    assert apart(folded["backbone"], whole["backbone"], x) <= 1e-5


def test_it_compiles() -> None:
    aim, x = made("residual")
    folded = aimgraph.fold(aim)
    compiled = torch.compile(folded, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, x), run(folded, x))


def test_what_can_not_be_folded_is_said() -> None:
    base, x = build("residual")
    with pytest.raises(aimgraph.PlanError, match="has no memory"):
        aimgraph.fold(base)
    with pytest.raises(aimgraph.ConfigError, match=r'in concat form \(stem\.0\): transform with lowering="split"'):
        aimgraph.fold(aimgraph.transform(base, x, lowering="concat"))
    aim = aimgraph.transform(base, x)
    with aimgraph.disable_memory(aim), pytest.raises(aimgraph.ConfigError, match="the memory is disabled"):
        aimgraph.fold(aim)
