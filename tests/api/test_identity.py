"""At zero init the transformed network computes what the base computes, bit for bit."""

import pytest
import torch
from torch import nn

import aimgraph
from aimgraph.copies import copy_module
from aimgraph.models_zoo import mlp, resnet50_keras, vgg16
from aimgraph.models_zoo.pretrained import efficientnet_lite0
from tests.nets import NETS, build, run, updates_for

SEED_NETWORKS = {
    "resnet50": (lambda: resnet50_keras(10), (2, 3, 64, 64)),
    "resnet50_stride1": (lambda: resnet50_keras(10, stem_stride=1), (2, 3, 32, 32)),
    "vgg16": (lambda: vgg16(10, hidden=64), (2, 3, 32, 32)),
    "mlp": (lambda: mlp(20, (16, 16), 5), (2, 20)),
}


def check_identity(base: nn.Module, x: torch.Tensor, **options: object) -> None:
    before = {name: value.clone() for name, value in base.state_dict().items()}
    aim = aimgraph.transform(base, x, verify="full", **options)
    for train in (False, True):
        for batch in (x, torch.cat([x, x[:1] * 0.5])):
            one, other = copy_module(base).train(train), copy_module(aim).train(train)
            expected, seen = run(one, batch), run(other, batch)
            assert torch.equal(expected, seen), (train, (expected - seen).abs().max())
            buffers = dict(other.named_buffers())
            for name, value in one.named_buffers():
                assert torch.equal(value, buffers[name]), name
    for name, value in base.state_dict().items():
        assert torch.equal(value, before[name]), f"the transform changed {name}"


@pytest.mark.parametrize("name", NETS)
def test_small_networks(name: str) -> None:
    base, x = build(name)
    check_identity(base, x)


@pytest.mark.parametrize("name", NETS)
def test_with_updates_and_state(name: str) -> None:
    base, x = build(name)
    check_identity(base, x, **updates_for(base, x), carry="state", shape=(2, 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"read": "resize"}, {"updates": "stages"}], ids=["plain", "resize", "updates"])
@pytest.mark.parametrize("name", SEED_NETWORKS)
def test_seed_networks(name: str, options: dict[str, object]) -> None:
    factory, shape = SEED_NETWORKS[name]
    torch.manual_seed(0)
    check_identity(factory(), torch.randn(shape), **options)


@pytest.mark.slow
def test_vgg16_at_full_width() -> None:
    torch.manual_seed(0)
    check_identity(vgg16(), torch.randn(1, 3, 64, 64))


def test_pretrained_efficientnet() -> None:
    base = efficientnet_lite0()
    torch.manual_seed(0)
    x = torch.randn(2, 3, 96, 96)
    check_identity(base, x)
    plan = aimgraph.plan(base, x)
    assert (plan.sites_read, plan.layers, plan.skipped) == (50, 50, ())
    assert sum(site.groups > 1 for site in plan.sites) == 16


@pytest.mark.parametrize("name", ["conv2d", "residual", "tokens", "depthwise"])
def test_gradients_of_the_base_are_unchanged(name: str) -> None:
    base, x = build(name)
    aim = aimgraph.transform(base, x).train()
    base.train()
    for module in (base, aim):
        run(module, x).square().sum().backward()  # type: ignore[attr-defined]
    seen = dict(aim.named_parameters())
    for path, parameter in base.named_parameters():
        assert torch.equal(parameter.grad, seen[path].grad), path
    reads = [p for path, p in seen.items() if ".reads." in path]
    assert reads
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in reads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    base, x = build("residual", dtype)
    check_identity(base, x)


def test_under_autocast() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x).eval()
    base.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(base(x), aim(x))


def test_channels_last_memory_format_is_kept() -> None:
    base, x = build("conv2d")
    aim = aimgraph.transform(base, x).to(memory_format=torch.channels_last)
    base = base.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    assert torch.equal(base(x), aim(x))
    assert aim(x).is_contiguous(memory_format=torch.channels_last)


def test_the_global_random_state_is_untouched() -> None:
    base, x = build("residual")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    aimgraph.transform(base, x, updates="stages", start="drawn")
    assert torch.equal(torch.rand(3), expected)


def test_the_seed_decides_the_values() -> None:
    base, x = build("conv2d")
    draws = [aimgraph.transform(base, x, seed=s).get_parameter("aim.memory.source.value") for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
