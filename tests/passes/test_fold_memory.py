"""What is read of a memory that never changes becomes a map or a bias."""

import pickle

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.runtime.bias_map import BiasMap
from tests.nets import apart, build, randomise, run, updates_for


def test_linear_layers_on_rows_hold_it_in_their_bias() -> None:
    base, x = build("linear")
    aim = randomise(aimgraph.transform(base, x)).eval()
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


def test_two_memories_go_into_the_same_bias() -> None:
    base, x = build("linear")
    two = (aimgraph.AimConfig(name="a"), aimgraph.AimConfig(name="b", shape=(5,)))
    aim = randomise(aimgraph.transform(base, x, config=two)).eval()
    folded = aimgraph.fold(aim)
    assert (len(folded.folds.biases), folded.folds.maps, folded.folds.left) == (2, (), {})
    assert apart(folded, aim, x) <= 1e-5
