"""A layer's clone over the channels of a memory."""

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from aimgraph.runtime.layer_kinds.conv import POINTWISE
from aimgraph.runtime.read_layers import read_layer
from aimgraph.runtime.start import Start


def test_read_layer_shares_nothing_with_the_layer() -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2)
    layer.register_forward_hook(lambda *_: None)
    read = read_layer(layer, 5, Start("zero_reads"))
    assert (read.in_channels, read.groups, read.bias, tuple(read.weight.shape)) == (5, 1, None, (6, 5, 3, 3))
    assert not read._forward_hooks
    assert (layer.in_channels, layer.groups, len(layer._forward_hooks)) == (4, 2, 1)
    assert layer.bias is not None


def test_default_init_is_that_of_the_widened_layer() -> None:
    layer = nn.Conv2d(60, 500, 3)
    weight = read_layer(layer, 4, Start("drawn")).weight
    bound = 1 / (64 * 9) ** 0.5  # kaiming_uniform(a=sqrt(5)) over the fan-in of the widened layer
    assert 0.97 * bound < weight.abs().max().item() <= bound * (1 + 1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("samples", [1, 2])
def test_reads_of_one_tap(rank: int, stride: int, samples: int) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    layer = kind(4, 5, 1, stride=stride, groups=1)
    read = read_layer(layer, 3, Start("drawn"))
    assert isinstance(read, POINTWISE[kind])
    plain = kind(3, 5, 1, stride=stride, bias=False)
    plain.load_state_dict(read.state_dict())
    view = torch.randn(samples, 3, *(6, 7, 8)[:rank])
    for given in (view, view.movedim(1, -1).contiguous().movedim(-1, 1)):
        torch.testing.assert_close(read(given), plain(given))
    assert torch.equal(copy.deepcopy(read)(view), read(view))


@pytest.mark.parametrize("size", [(7, 7), (4, 6), (12, 9)])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 7, "padding": 3},
        {"kernel_size": 7, "padding": "same"},
        {"kernel_size": 5, "padding": 2, "stride": 2},
        {"kernel_size": (5, 3), "padding": (4, 1), "dilation": (2, 1)},
        {"kernel_size": 7, "padding": 3, "padding_mode": "reflect"},
        {"kernel_size": 3, "stride": (2, 1), "padding": 1, "groups": 2},
    ],
)
def test_reads_of_few_places(size: tuple[int, int], samples: int, options: dict[str, Any]) -> None:
    layer = nn.Conv2d(4, 6, **options).double()
    read = read_layer(layer, 3, Start("drawn"))
    plain = nn.Conv2d(3, 6, **options | {"groups": 1}, bias=False).double()
    plain.load_state_dict(read.state_dict())
    view = torch.randn(samples, 3, *size, dtype=torch.float64)
    for given in (view, view.contiguous(memory_format=torch.channels_last)):
        results = []
        for module in (read, plain):
            given = given.detach().requires_grad_()
            output = module(given)
            output.square().sum().backward()
            results.append((output, given.grad, module.weight.grad))
            module.zero_grad()
        torch.testing.assert_close(*results)
        if samples == 1 and given.stride(1) == 1:
            assert read(given).stride(1) == 1


def test_strided_reads_of_few_channels_last_stay_within_memory() -> None:
    code = (
        "import torch, aimgraph; from torch import nn\n"
        "base = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 64, 1, stride=2), nn.Conv2d(64, 16, 1, stride=3))\n"
        "aim = aimgraph.transform(base, torch.zeros(1, 3, 222, 222), shape=(222, 222, 3))\n"
        "for model in (aim, aim.to(memory_format=torch.channels_last)):\n"
        "    for _ in range(4):\n"
        "        model(torch.randn(1, 3, 222, 222)).square().mean().backward()\n"
        "        kept = [torch.randn(1000) for _ in range(10)]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "MALLOC_CHECK_": "3"}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-500:]
