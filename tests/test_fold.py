"""Folded modules compute what they were folded from, without memory arithmetic."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.fold import FoldedModule
from aimgraph.runtime.folded import BiasMap
from tests.nets import NETS, build, randomise, run, updates_for


def made(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Module, Tensor]:
    base, x = build(name)
    base, x = base.to(dtype), x.to(dtype)
    aim: nn.Module = randomise(aimgraph.transform(base, x, **options))
    return aim.eval(), x


def apart(folded: nn.Module, aim: nn.Module, x: Tensor) -> float:
    """Largest difference over the largest output."""
    expected = run(aim, x)
    return float(((run(folded, x) - expected).abs().max() / expected.abs().max()).detach())


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


def test_linear_layers_on_rows_hold_it_in_their_bias() -> None:
    aim, x = made("linear")
    folded = aimgraph.fold(aim)
    assert folded.folds.maps == ()
    assert len(folded.folds.biases) == 2
    assert not any(isinstance(module, BiasMap) for module in folded.modules())
    again = pickle.loads(pickle.dumps(folded))
    assert torch.equal(run(again, x), run(folded, x))
    assert again.folds == folded.folds


def test_a_constant_map_becomes_a_bias_at_every_size() -> None:
    base = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    aim = randomise(aimgraph.transform(base, torch.zeros(2, 3, 6, 6), shape=(6, 6, 1), read="resize")).eval()
    with torch.no_grad():
        aim.get_parameter("aim.memory.source.value").fill_(0.3)
    folded = aimgraph.fold(aim)
    assert (folded.folds.biases, folded.folds.maps) == (("0",), ("2",))  # padding makes the edges of the second differ
    assert apart(folded, aim, torch.randn(2, 3, 6, 6)) <= 1e-5
    aim.get_submodule("aim.memory.reads.2").weight.data.zero_()
    assert apart(aimgraph.fold(aim), aim, torch.randn(2, 3, 9, 7)) <= 1e-5


def test_another_size_is_refused_or_folded_for() -> None:
    aim, x = made("residual")
    folded = aimgraph.fold(aim)
    larger = torch.randn(2, x.shape[1], x.shape[2] + 4, x.shape[3] + 2)
    with pytest.raises(aimgraph.ExampleInputError, match=r"stem\.0: its memory was folded into a map of shape \[1, "):
        run(folded, larger)
    assert apart(aimgraph.fold(aim, larger), aim, larger) <= 1e-5


@pytest.mark.parametrize("write_in_eval", [True, False])
def test_what_comes_before_the_first_update_folds(write_in_eval: bool) -> None:
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base, x, **updates_for(base, x), carry="state", write_in_eval=write_in_eval))
    run(aim.train(), x)  # leaves a state
    folded, aim = aimgraph.fold(aim), aim.eval()
    assert folded.folds.left
    assert bool(folded.folds.maps) is not write_in_eval
    for _ in range(3):
        assert apart(folded, aim, x) <= 1e-5


class _ByValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) if float(x.detach().sum()) > 0 else self.second(x)


def test_modules_that_are_one_call_read_as_before() -> None:
    base = nn.Sequential(nn.Linear(4, 4), _ByValue(), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    aim = randomise(aimgraph.transform(base, x)).eval()
    folded = aimgraph.fold(aim)
    assert set(folded.folds.biases) == {"0", "2"}
    assert all(reason == "inside a module that is kept as one call" for reason in folded.folds.left.values())
    for given in (x, -x, x[:1]):
        assert apart(folded, aim, given) <= 1e-5


def test_a_layer_with_two_lives_keeps_its_bias() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(x)) * self.mix.bias + self.head(x)

    x = torch.randn(3, 4)
    aim = randomise(aimgraph.transform(Net(), x)).eval()
    folded = aimgraph.fold(aim)
    assert (folded.folds.biases, set(folded.folds.maps)) == ((), {"mix", "head"})
    assert apart(folded, aim, x) <= 1e-5


class _Norms(nn.Module):
    """Norms behind layers: of every kind, and some that can't be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.grouped, self.plain = nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False)
        self.up, self.behind_up = nn.ConvTranspose2d(6, 4, 2, 2), nn.BatchNorm2d(4)
        self.twice, self.shared = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.seen, self.behind_seen = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.fresh, self.batch = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
        self.row, self.behind_row = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.tokens, self.behind_tokens = nn.Linear(5, 5), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.grouped(self.norm(self.first(x)).relu())).relu()
        x = self.behind_up(self.up(x))
        x = self.shared(self.twice(self.shared(self.twice(x))))
        seen = self.seen(x)
        x = self.behind_seen(seen) + seen
        x = self.batch(self.fresh(x))
        x = self.behind_row(self.row(x.mean((2, 3))))
        return self.behind_tokens(self.tokens(torch.stack([x, x + 1, x * 2], 1)))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_norms_are_fused_where_nothing_else_looks(dtype: torch.dtype, bound: float) -> None:
    base, x = _Norms().to(dtype), torch.randn(4, 3, 8, 8, dtype=dtype)
    aim = randomise(aimgraph.transform(base, x))
    for norm in aim.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    aim.eval()
    folded, fused = aimgraph.fold(aim), aimgraph.fold(aim, fuse_batchnorm=True)
    called = [str(node.target) for node in fused.graph.find_nodes(op="call_module")]
    left = ["behind_up", "shared", "shared", "behind_seen", "batch", "behind_tokens"]
    assert [name for name in called if isinstance(fused.get_submodule(name), nn.modules.batchnorm._BatchNorm)] == left
    for module in (folded, fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert apart(module, aim, x) <= bound
    assert apart(fused, aim, torch.randn(7, 3, 8, 8, dtype=dtype)) <= bound


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
    with pytest.raises(aimgraph.ConfigError, match=r'stem\.0 is in concat form: transform with lowering="split"'):
        aimgraph.fold(aimgraph.transform(base, x, lowering="concat"))
    aim = aimgraph.transform(base, x)
    with aimgraph.disable_memory(aim), pytest.raises(aimgraph.ConfigError, match="the memory is disabled"):
        aimgraph.fold(aim)
