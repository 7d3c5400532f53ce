"""How features are written into a memory."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aimgraph.config import AimConfig
from aimgraph.planning.parts import Parts
from aimgraph.planning.sites import UpdateSpot
from aimgraph.runtime.parts import factory_of
from aimgraph.runtime.specs import BlockSpec
from aimgraph.runtime.updates.conv_sigmoid import ConvSigmoid, SampleNorm


def block(
    shape: tuple[int, ...], features: int, grid: tuple[int, ...], read: str = "reshape", mode: str = "replace"
) -> ConvSigmoid:
    return ConvSigmoid(BlockSpec(shape, features, grid, mode == "gated", factory_of("read", read)))


@pytest.mark.parametrize("mode", ["replace", "gated"])
@pytest.mark.parametrize("read", ["reshape", "resize"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (6,)])
@pytest.mark.parametrize("grid", [(), (7,), (5, 4), (2, 3, 4)])
def test_shapes_and_parameter_counts(grid: tuple[int, ...], shape: tuple[int, ...], read: str, mode: str) -> None:
    update = block(shape, 5, grid, read, mode)
    size = int(torch.tensor(shape).prod())
    out = update(torch.randn(1, size), torch.randn(3, 5, *grid))
    assert out.shape == (3, size)
    parts = Parts(AimConfig(shape=shape, updates="stages", read=read, mode=mode))
    spot = UpdateSpot("memory", "", {}, 5, grid, 0, 1)
    assert parts.update_parameters(shape, spot) == sum(p.numel() for p in update.parameters())


def test_against_the_formula_written_out() -> None:
    """[X ; read(M)] -> 3 x (conv 3 -> BN -> sigmoid) -> pool to (rows, cols) -> conv 1, flattened channels last."""
    torch.manual_seed(0)
    update = block((2, 2, 3), 4, (6, 5)).double().eval()
    for buffer in update.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    x, memory = torch.randn(2, 4, 6, 5, dtype=torch.float64), torch.randn(1, 12, dtype=torch.float64)
    shown = torch.zeros(6, 5, dtype=torch.float64)
    shown[1:5, 0:4] = F.pad(memory[0], (0, 4)).reshape(4, 4)  # N = 12 < P: a centred 4 x 4 square
    h = torch.cat([x, shown.expand(2, 1, 6, 5)], 1)
    layers = list(update.hidden)
    for conv, norm in zip(layers[0::3], layers[1::3], strict=True):
        h = F.conv2d(h, conv.weight, conv.bias, padding=1)
        bn = norm.norm
        h = (h - bn.running_mean[:, None, None]) / (bn.running_var[:, None, None] + bn.eps).sqrt()
        h = torch.sigmoid(h * bn.weight[:, None, None] + bn.bias[:, None, None])
    assert [c.out_channels for c in layers[0::3]] == [16, 16, 32]
    h = F.adaptive_avg_pool2d(h, (2, 2))
    new = torch.einsum("oc,bchw->bohw", update.head.weight[..., 0, 0], h) + update.head.bias[:, None, None]
    expected = torch.stack([new[:, c, r, q] for r in range(2) for q in range(2) for c in range(3)], 1)
    assert (update(memory, x) - expected).abs().max() < 1e-12


def test_gate_mixes_old_and_new() -> None:
    update = block((4,), 3, (), mode="gated")
    with torch.no_grad():
        update.head.weight[4:].zero_()
        update.head.bias[4:].fill_(-30.0)
    memory = torch.randn(1, 4)
    assert torch.allclose(update(memory, torch.randn(5, 3)), memory.expand(5, 4), atol=1e-6)
    with torch.no_grad():
        update.head.bias[4:].fill_(30.0)
    other = torch.randn(1, 4)
    replace = block((4,), 3, ())
    replace.hidden = update.hidden
    replace.head = nn.Linear(32, 4)
    with torch.no_grad():
        replace.head.weight.copy_(update.head.weight[:4])
        replace.head.bias.copy_(update.head.bias[:4])
    x = torch.randn(5, 3)
    assert torch.allclose(update(other, x), replace(other, x), atol=1e-5)


def test_pool_gives_the_batch_mean() -> None:
    one = block((2, 2, 3), 4, (6, 5)).eval()
    pooled = copy.deepcopy(one)
    pooled.pool = "batch"
    x, memory = torch.randn(3, 4, 6, 5), torch.randn(1, 12)
    assert torch.allclose(pooled(memory, x), one(memory, x).mean(0, keepdim=True))


def test_layout_of_the_features() -> None:
    update = block((2, 2, 3), 4, (5,)).eval()
    moved = copy.deepcopy(update)
    moved.batch_axis, moved.channel_axis = 1, 2
    x, memory = torch.randn(3, 4, 5), torch.randn(1, 12)
    assert torch.equal(moved(memory, x.permute(2, 0, 1)), update(memory, x))


def test_another_resolution() -> None:
    update = block((2, 2, 3), 4, (6, 5)).eval()
    assert update(torch.randn(2, 12), torch.randn(2, 4, 9, 11)).shape == (2, 12)


def test_norm_of_a_single_value_uses_running_statistics() -> None:
    norm = SampleNorm(3, 2).train()
    x = torch.randn(1, 3, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value"):
        norm.norm(x)
    before = copy.deepcopy(norm.state_dict())
    assert torch.equal(norm(x), copy.deepcopy(norm).eval()(x))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    x = torch.randn(2, 3, 1, 1)
    assert torch.equal(norm(x), nn.BatchNorm2d(3)(x))
