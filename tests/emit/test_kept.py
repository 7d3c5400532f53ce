"""What training keeps for the backward pass, counted before anything is trained."""

import copy
import gc
import json

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.bench.footprint import kept_bytes
from aimgraph.torch_private import FakeTensor
from tests.nets import build


@pytest.mark.parametrize("name", ["residual", "depthwise", "tokens", "linear"])
def test_it_is_what_forwards_keep(name: str) -> None:
    net, x = build(name)
    planned = aimgraph.plan(net, x, start="drawn")
    aim = aimgraph.transform(net, x, start="drawn").train()
    cpu = torch.device("cpu")
    counted = [kept_bytes(lambda: aim(x), cpu)]
    for lean in (False, True):
        frozen = aimgraph.freeze_base(copy.deepcopy(aim), lean=lean)
        counted.append(kept_bytes(lambda frozen=frozen: frozen(x), cpu))
    assert planned.kept is not None
    expected = [planned.kept.full, planned.kept.frozen, planned.kept.lean]
    slack = 4 * net(x).numel() + 256  # the output itself, and numbers
    assert [0 <= one - other <= slack for one, other in zip(counted, expected, strict=True)] == [True] * 3
    assert aimgraph.plan(aim).kept == planned.kept
    assert "kept for the backward pass" in str(planned)
    assert json.loads(json.dumps(planned.to_dict()))["kept"]["lean"] == planned.kept.lean


def test_counting_leaves_a_module_as_it_was() -> None:
    net, x = build("residual")
    aim = aimgraph.freeze_base(aimgraph.transform(net, x, start="drawn"), lean=False).train()
    before, modes = copy.deepcopy(aim.state_dict()), [module.training for module in aim.modules()]
    code = aim.code
    aimgraph.plan(aim)
    assert [module.training for module in aim.modules()] == modes
    assert aim.code == code
    assert all(torch.equal(one, before[key]) for key, one in aim.state_dict().items())


def test_a_forward_that_needs_values_says_so() -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            while float(x.detach().abs().max()) > 1:
                x = x / 2
            return self.mix(x)

    planned = aimgraph.plan(nn.Sequential(nn.Linear(4, 4), Decides()), torch.randn(2, 4))
    assert planned.kept is not None
    assert "not known" in str(planned.kept)


def test_counting_leaves_no_tensors_behind() -> None:
    net, x = build("residual")

    def alive() -> int:
        gc.collect()
        return sum(isinstance(one, FakeTensor) for one in gc.get_objects())

    aimgraph.plan(net, x)
    before = alive()
    aimgraph.plan(net, x)
    assert alive() <= before
