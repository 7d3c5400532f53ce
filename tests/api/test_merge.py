"""merge puts what is read into the base's biases where that is exact, and says where it is not."""

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.errors import ConfigError, PlanError
from tests.nets import NETS, apart, build, randomise


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_an_mlp_is_the_base_with_other_biases(dtype: torch.dtype, bound: float) -> None:
    base, x = build("linear", dtype)
    aim = randomise(aimgraph.transform(base, x)).eval()
    merged = aimgraph.merge(aim)
    assert type(merged.model) is type(base)
    assert merged.biases == ("0", "2")
    assert not merged.left
    assert set(merged.model.state_dict()) == {*base.state_dict(), "2.bias"}
    assert apart(merged.model, aim, x) <= bound
    assert torch.equal(merged.model[0].weight, base[0].weight)
    assert base[2].bias is None


@pytest.mark.parametrize("name", NETS)
def test_what_is_left_is_all_that_differs(name: str) -> None:
    base, x = build(name)
    aim = randomise(aimgraph.transform(base, x)).eval()
    before = {key: value.clone() for key, value in aim.state_dict().items()}
    reads = [read.name for memory in aimgraph.plan(aim).memories for read in memory.reads]
    merged = aimgraph.merge(aim, partial=True)
    assert sorted([*merged.biases, *merged.left]) == sorted(reads)
    if merged.left:
        with pytest.raises(PlanError, match=rf"{len(merged.left)} of {len(reads)} layers read what no bias can hold"):
            aimgraph.merge(aim)
    with torch.no_grad():  # without what is left, both compute the same
        for read in merged.left:
            for parameter in aim.get_submodule(f"aim.memory.reads.{read}").parameters():
                parameter.zero_()
    assert apart(merged.model, aim, x) <= 1e-5
    with torch.no_grad():
        for parameter in merged.model.parameters():
            parameter.zero_()
    for key, value in aim.state_dict().items():
        assert torch.equal(value, before[key]) or key.startswith("aim.memory.reads.")


class Auxiliary(nn.Module):
    """A head that is there in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.auxiliary = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(y) + self.auxiliary(y) if self.training else self.head(y)


def test_a_layer_of_train_mode_only_is_told() -> None:
    aim = randomise(aimgraph.transform(Auxiliary(), torch.zeros(2, 4)))
    merged = aimgraph.merge(aim, partial=True)
    assert merged.left == {"auxiliary": "it is called in train mode only"}
    x = torch.randn(3, 4)
    assert apart(merged.model.eval(), aim.eval(), x) <= 1e-5


def test_parts_of_a_model() -> None:
    whole = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "b": nn.Linear(4, 2)})
    aim = aimgraph.transform(whole, torch.zeros(2, 4), within="a")
    randomise(aim["a"])
    merged = aimgraph.merge(aim)
    assert merged.biases == ("a.0",)
    x = torch.randn(3, 4)
    assert type(merged.model["a"]) is nn.Sequential
    assert apart(merged.model["a"], aim["a"].eval(), x) <= 1e-5


def test_what_can_not_be_merged() -> None:
    base, x = build("linear")
    with pytest.raises(PlanError, match="has no memory"):
        aimgraph.merge(base)
    with pytest.raises(ConfigError, match="concat form"):
        aimgraph.merge(aimgraph.transform(base, x, lowering="concat"))
