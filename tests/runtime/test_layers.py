"""The algebra of a site, on plain layers."""

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.layers import Widened, concat_weight, groups_of, split_weight
from aimgraph.runtime.read import interleave
from aimgraph.runtime.read_layers import POINTWISE, read_layer

LAYERS = {
    "conv": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1),
    "linear": nn.Linear(4, 6),
}


@pytest.mark.parametrize("name", LAYERS)
def test_widened_is_the_sum(name: str) -> None:
    layer = LAYERS[name].double()
    reads = [read_layer(layer, k, "default") for k in (2, 3)]
    shape = (5, 7, 4) if name == "linear" else (5, 4, 7, 6)
    axis = len(shape) - 1 if name == "linear" else 1
    x = torch.randn(shape, dtype=torch.float64)
    views = [torch.randn([k if i == axis else s for i, s in enumerate(shape)], dtype=torch.float64) for k in (2, 3)]
    wide = Widened(layer, reads)
    assert not list(wide.parameters())
    total = layer(x) + reads[0](views[0]) + reads[1](views[1])
    assert (wide(interleave(x, views, groups_of(layer), axis)) - total).abs().max() < 1e-12


@pytest.mark.parametrize("name", LAYERS)
def test_narrow_undoes_widen(name: str) -> None:
    layer = LAYERS[name].double()
    weights = [read_layer(layer, k, "default").weight.detach() for k in (2, 1)]
    base, reads = split_weight(layer, concat_weight(layer, layer.weight.detach(), weights), [2, 1])
    assert torch.equal(base, layer.weight)
    assert all(torch.equal(a, b) for a, b in zip(reads, weights, strict=True))


def test_read_layer_shares_nothing_with_the_layer() -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2)
    layer.register_forward_hook(lambda *_: None)
    read = read_layer(layer, 5, "zero")
    assert (read.in_channels, read.groups, read.bias, tuple(read.weight.shape)) == (5, 1, None, (6, 5, 3, 3))
    assert not read._forward_hooks
    assert (layer.in_channels, layer.groups, len(layer._forward_hooks)) == (4, 2, 1)
    assert layer.bias is not None


def test_default_init_is_that_of_the_widened_layer() -> None:
    layer = nn.Conv2d(60, 500, 3)
    torch.manual_seed(0)
    weight = read_layer(layer, 4, "default").weight
    bound = 1 / (64 * 9) ** 0.5  # kaiming_uniform(a=sqrt(5)) over the fan-in of the widened layer
    assert 0.97 * bound < weight.abs().max().item() <= bound


def test_accumulate_is_in_place_where_it_may() -> None:
    y = torch.randn(3, 4)
    assert accumulate(y, torch.ones(1, 4)) is y
    view = torch.randn(3, 8)[:, ::2]
    before = view.clone()
    assert torch.equal(accumulate(view, torch.ones(1, 4)), before + 1)
    assert torch.equal(view, before)
    assert accumulate(torch.zeros(1, 4), torch.ones(3, 4)).shape == (3, 4)


def test_full_backward_hooks_go_on_working() -> None:
    import aimgraph

    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    x = torch.randn(2, 3, 8, 8)
    aim = aimgraph.transform(base, x)
    seen = []
    aim.get_submodule("0").register_full_backward_hook(lambda *_: seen.append(1))
    aim(x.requires_grad_()).sum().backward()
    assert seen == [1]


def test_vmap_over_memories() -> None:
    import aimgraph

    base = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    aim = aimgraph.transform(base, x, init="default", shape=(6,))
    memories = torch.randn(7, 6, dtype=torch.float64)

    def call(memory: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(aim, {"aim.memory.source.value": memory}, (x,))

    batched = torch.func.vmap(call)(memories)
    assert torch.allclose(batched, torch.stack([call(memory) for memory in memories]))


def test_vmap_over_convolutions() -> None:
    import aimgraph

    base = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).double()
    x = torch.randn(5, 3, 4, 6, dtype=torch.float64)
    aim = aimgraph.transform(base, x, init="default", shape=(4, 6, 2))
    memories = torch.randn(7, 48, dtype=torch.float64)

    def call(memory: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(aim, {"aim.memory.source.value": memory}, (x,))

    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        batched = torch.func.vmap(call, (0, None))(memories, given)
        torch.testing.assert_close(batched, torch.stack([call(memory, x) for memory in memories]))
        by_sample = torch.func.vmap(call, (None, 0))(memories[0], given.unsqueeze(1))
        torch.testing.assert_close(by_sample.squeeze(1), call(memories[0], x))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("samples", [1, 2])
def test_reads_of_one_tap(rank: int, stride: int, samples: int) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    layer = kind(4, 5, 1, stride=stride, groups=1)
    read = read_layer(layer, 3, "default")
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
    read = read_layer(layer, 3, "default")
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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("when", ["before", "after"])
def test_terms_are_laid_out_as_the_outputs_they_are_added_to(
    layout: torch.memory_format, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aimgraph

    base = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1, stride=2), nn.Conv2d(4, 6, 3, groups=2)
    )
    x = torch.randn(2, 3, 10, 12)
    if when == "before":
        base.to(memory_format=layout)  # type: ignore[call-overload]
    aim = aimgraph.transform(base, x, init="default", shape=(10, 12, 1)).to(memory_format=layout)
    added, add = [], torch.Tensor.add_

    def seen(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        added.append((self.stride()[1:], other.stride()[1:]))
        return add(self, other)

    monkeypatch.setattr(torch.Tensor, "add_", seen)
    for given in (x, torch.randn(2, 3, 14, 9)):
        aim(given.contiguous(memory_format=layout))
    assert len(added) == 8
    assert all(output == term for output, term in added)


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
