"""Where an input leads elsewhere, the base's own forward runs, with what its layers read."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from tests.nets import randomise, run


class _Pads(nn.Module):
    """A U-Net that pads what it has scaled up where that does not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.low, self.up, self.head = nn.Conv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor, values: Tensor | None = None) -> Tensor:
        skip = self.norm(self.down(x)).relu()
        y = self.up(F.pad(self.low(F.max_pool2d(skip, 2)), (1, 1, 1, 1)))
        rows, cols = skip.shape[-2] - y.shape[-2], skip.shape[-1] - y.shape[-1]
        if rows or cols:
            y = F.pad(y, (0, cols, 0, rows))
        return self.head(torch.cat([skip, y], 1) if values is None else torch.cat([skip, y + values], 1))


@pytest.mark.filterwarnings("ignore:the forward asks for:UserWarning", "ignore:the argument:UserWarning")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("example", [(13, 9), (16, 12)])
def test_sizes_that_lead_elsewhere(example: tuple[int, int], train: bool) -> None:
    base = _Pads().train(train)
    aim = aimgraph.transform(base, torch.randn(2, 3, *example))
    for number, size in enumerate([(13, 9), (16, 12), (13, 9), (20, 11), (16, 12)]):
        x = torch.randn(number % 3 + 1, 3, *size)
        assert torch.equal(aim(x), base(x))
        if number % 2:
            assert torch.equal(aim(x, values=x.new_ones(1)), base(x, values=x.new_ones(1)))
        buffers = dict(base.named_buffers())
        assert all(torch.equal(buffer, aim.get_buffer(name)) for name, buffer in buffers.items())
    # what is resampled anyway is the same at every size: the graph of one is compared with the forward of the other
    resized = {"shape": (3, 2, 2), "read": "resize", "start": "drawn"}
    made = [aimgraph.transform(base, torch.randn(2, 3, *size), **resized) for size in [(13, 9), (16, 12)]]
    made[1].load_state_dict(made[0].state_dict())
    for size in [(13, 9), (16, 12)]:
        outputs, gradients = [], []
        for module in map(copy.deepcopy, made):
            outputs.append(module(torch.linspace(-1, 1, 6 * size[0] * size[1]).reshape(2, 3, *size)))
            outputs[-1].square().sum().backward()
            gradients.append([parameter.grad for parameter in module.parameters()])
        assert torch.equal(*outputs)
        assert all(a is not None and torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    aim = randomise(aim)
    with aimgraph.disable_memory(aim):
        again = copy.deepcopy(base)
        again.load_state_dict(aimgraph.strip(aim).state_dict())
        x = torch.randn(2, 3, 16, 13)
        assert torch.equal(run(aim, x), run(again, x))


@pytest.mark.filterwarnings("ignore:the forward asks for:UserWarning")
def test_elsewhere_as_anywhere() -> None:
    """Frozen, copied, pickled, with other parameters, below a checkpoint, and with hooks."""
    base, x = _Pads(), torch.randn(2, 3, 16, 12)
    aim = randomise(aimgraph.transform(base, torch.randn(2, 3, 13, 9)))
    expected = run(copy.deepcopy(aim).eval(), x)
    frozen = aimgraph.freeze_base(copy.deepcopy(aim)).train()
    assert torch.equal(run(frozen, x), expected)
    run(frozen, x).sum().backward()
    assert {name for name, p in frozen.named_parameters() if p.grad is not None} == {
        name for name, _ in frozen.named_parameters() if name.startswith("aim.")
    }
    aim.eval()
    for other in (copy.deepcopy(aim), pickle.loads(pickle.dumps(aim))):
        assert torch.equal(run(other, x), expected)
    swapped = {name: parameter.detach() * 2 for name, parameter in aim.named_parameters()}
    twice = copy.deepcopy(aim)
    with torch.no_grad():
        for parameter in twice.parameters():
            parameter.mul_(2)
    assert torch.equal(torch.func.functional_call(aim, swapped, (x,)), run(twice, x))
    seen: list[str] = []
    aim.register_forward_hook(lambda *_: seen.append("once"))
    y = torch.utils.checkpoint.checkpoint(aim, x, use_reentrant=False)
    assert torch.equal(y, expected)
    assert seen == ["once"]
    y.square().sum().backward()
    direct = copy.deepcopy(aim)
    direct.zero_grad()
    run(direct, x).square().sum().backward()
    gradients = zip(aim.parameters(), direct.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in gradients if a.grad is not None or b.grad is not None)


@pytest.mark.parametrize("options", [{"lowering": "concat"}, {"updates": ("norm",)}])
def test_what_the_forward_itself_can_not_stand_in_for(options: dict[str, Any]) -> None:
    aim = aimgraph.transform(_Pads(), torch.randn(2, 3, 13, 9), **options)
    with pytest.raises(aimgraph.ExampleInputError, match=r"the truth of .* can't stand in for the graph here: it"):
        aim(torch.randn(2, 3, 16, 12))
    with aimgraph.disable_memory(aim):
        if aimgraph.plan(aim).memories[0].reads[0].lowering == "concat":
            with pytest.raises(aimgraph.ExampleInputError, match="the truth of"):
                aim(torch.randn(2, 3, 16, 12))
        else:
            with pytest.warns(UserWarning, match="the truth of"):
                assert aim(torch.randn(2, 3, 16, 12)).shape == (2, 2, 16, 12)
