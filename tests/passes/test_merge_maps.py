"""Maps move behind sums, and two become one."""

import copy
import operator
import pickle

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.api.fold import exposed
from aimgraph.runtime.bias_map import BiasMap
from tests.nets import apart, randomise


class Block(nn.Module):
    """Two branches that end in layers."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.two, self.rest = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(3, 4, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return HOW[self.how](self.two(self.one(x).relu()), self.rest(x)).relu()


def into_the_rest(y: Tensor, rest: Tensor) -> Tensor:
    top = rest[:, :, :4]
    top += y[:, :, :4]
    return rest


HOW = {
    "+": operator.add,
    "+=": operator.iadd,
    "torch.add": torch.add,
    "add_": lambda y, rest: y.add_(rest),
    "scaled": lambda y, rest: torch.add(y, rest, alpha=2),
    "broadcast": lambda y, rest: y + rest.mean((2, 3), keepdim=True),
    "type": lambda y, rest: y + rest.double(),
    "number": lambda y, rest: y + 1.0,
    "seen": lambda y, rest: y + rest * y,
    "twice": lambda y, rest: y + y,
    "into the rest": into_the_rest,
    "over the rest": lambda y, rest: rest.add_(y),
}


def maps(module: nn.Module) -> list[tuple[str, ...]]:
    """The layers of every map that is added, in order; none is there that is not added."""
    graph = module.graph
    assert isinstance(graph, torch.fx.Graph)
    called = [module.get_submodule(str(node.target)) for node in graph.find_nodes(op="call_module")]
    added = [made for made in called if isinstance(made, BiasMap)]
    assert set(added) == {made for made in module.modules() if isinstance(made, BiasMap)}
    return [made.sites for made in added]


@pytest.mark.parametrize("how", ["+", "+=", "torch.add", "add_", "over the rest"])
def test_maps_of_two_branches_are_one(how: str) -> None:
    base, x = Block(how).double(), torch.randn(2, 3, 8, 6, dtype=torch.float64)
    aim = randomise(aimgraph.transform(base, x, shape=(4, 4, 3))).eval()
    folded = aimgraph.fold(aim)
    assert [set(sites) for sites in maps(folded)] == [{"one"}, {"two", "rest"}]
    assert set(folded.folds.maps) == {"one", "two", "rest"}
    for module in folded, copy.deepcopy(folded), pickle.loads(pickle.dumps(folded)):
        assert apart(module, aim, x) <= 1e-12
        assert apart(module, aim, torch.randn(5, 3, 8, 6, dtype=torch.float64)) <= 1e-12
    with pytest.raises(aimgraph.errors.ExampleInputError, match=r"rest, two|two, rest"):
        folded.get_submodule(str(folded.graph.find_nodes(op="call_module")[-1].target))(torch.zeros(1, 4, 9, 9))


@pytest.mark.parametrize("how", ["scaled", "broadcast", "type", "number", "seen", "twice", "into the rest"])
def test_maps_stay_before_what_is_no_plain_sum(how: str) -> None:
    base, x = Block(how).double(), torch.randn(2, 3, 8, 6, dtype=torch.float64)
    base = base.float() if how == "type" else base
    x = x.float() if how == "type" else x
    aim = randomise(aimgraph.transform(base, x, shape=(4, 4, 3))).eval()
    folded = aimgraph.fold(aim)
    assert all(len(sites) == 1 for sites in maps(folded))
    assert apart(folded, aim, x) <= (1e-5 if how == "type" else 1e-12)


class NoSum(nn.Module):
    """A layer whose path is that of a sum's name."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.add = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1), nn.Bilinear(6, 6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.one(x), self.two(x))


class OfParameter(nn.Module):
    """A summand without a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.place = nn.Linear(6, 6), nn.Linear(6, 6), nn.Parameter(torch.randn(1, 3, 8, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x).relu() + self.two(self.place)


@pytest.mark.parametrize("base", [NoSum, OfParameter])
def test_what_looks_like_a_sum_of_two_of_a_kind(base: type[nn.Module]) -> None:
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    aim = randomise(aimgraph.transform(base().double(), x, shape=(4, 4, 3))).eval()
    folded = aimgraph.fold(aim)
    for batch in 1, 2, 5:
        assert apart(folded, aim, torch.randn(batch, 3, 8, 6, dtype=torch.float64)) <= 1e-12


class Chain(nn.Module):
    """Residuals whose sums nothing else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layers[0](x))
        for layer in self.layers[1:]:
            y = y + layer(x)
        return y


def test_a_chain_of_sums_ends_in_one_map() -> None:
    base, x = Chain().double(), torch.randn(2, 3, 8, 6, dtype=torch.float64)
    nn.init.uniform_(base.norm.running_mean)
    aim = randomise(aimgraph.transform(base, x, shape=(4, 4, 3))).eval()
    folded, fused = aimgraph.fold(aim), aimgraph.fold(aim, fuse_batchnorm=True)
    assert [len(sites) for sites in maps(folded)] == [1, 3]
    assert [len(sites) for sites in maps(fused)] == [4]
    sums = [node for node in fused.graph.nodes if node.target is operator.add]
    assert len(sums) == 3
    for module in folded, fused:
        assert apart(module, aim, x) <= 1e-12


def test_two_memories_of_one_layer_are_one_map() -> None:
    base, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).double(), torch.randn(2, 3, 8, 6, dtype=torch.float64)
    configs = [aimgraph.AimConfig(name=name, shape=(4, 4, 3)) for name in ("one", "two")]
    aim = randomise(aimgraph.transform(base, x, config=configs)).eval()
    folded = aimgraph.fold(aim)
    assert maps(folded) == [("0",)]
    assert apart(folded, aim, x) <= 1e-12


@pytest.mark.parametrize("how", HOW)
def test_terms_move_as_maps_do(how: str) -> None:
    """What is read of a memory that is not folded."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    aim = randomise(aimgraph.transform(Block(how).eval(), x)).eval()
    module, _ = exposed(aim, aim._record.inputs, "input", keep=("memory",), sizes=False)
    value = aim.get_submodule("aim.memory.source")()
    with torch.no_grad():
        assert torch.allclose(module(value, x), aim(x), atol=1e-5)
    names = [str(node.target) for node in module.graph.nodes]
    last = max(index for index, name in enumerate(names) if name in ("two", "rest"))
    added = [index for index, name in enumerate(names) if "add_term" in name and index > last]
    sums = [index for index, name in enumerate(names) if "add" in name and "add_term" not in name]
    both = how in ("+", "+=", "torch.add", "add_", "over the rest")
    assert (bool(sums) and bool(added) and sums[-1] < added[0]) == both
