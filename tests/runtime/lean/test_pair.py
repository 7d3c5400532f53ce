"""A norm and an activation in one step give what torch's two modules give, forward and backward, to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.bench.footprint import kept_bytes
from aimgraph.runtime.lean import bits, pair
from aimgraph.runtime.lean.pair import lean_pair

SHAPES = ((8, 6, 8, 8), (3, 6, 7, 5), (1, 4, 5, 5), (16, 6, 1, 1), (8, 6), (5, 6, 9), (8, 8, 2, 4, 6))
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "transposed": lambda x: x.transpose(1, -1).contiguous().transpose(1, -1),
}
ACTIVATIONS = {
    "ReLU": (nn.ReLU(), F.relu),
    "ReLU in place": (nn.ReLU(inplace=True), F.relu),
    "ReLU6": (nn.ReLU6(), F.relu6),
    "Hardtanh": (nn.Hardtanh(-0.3, 0.7), lambda y: F.hardtanh(y, -0.3, 0.7)),
    "Hardtanh in place": (nn.Hardtanh(-0.3, 0.7, inplace=True), lambda y: F.hardtanh_(y, -0.3, 0.7)),
    "relu": ("relu", F.relu),
    "relu_": ("relu_", torch.relu_),
    "relu6": ("relu6", F.relu6),
}


def frozen_norm(rank: int, channels: int, dtype: torch.dtype, *, affine: bool = True) -> Any:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[rank]
    norm = kind(channels, affine=affine).eval().requires_grad_(False)
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(channels) + 0.2)
    return norm.to(dtype)


def both(norm: Any, activation: Any, x: Tensor, layout: Callable[[Tensor], Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Output and gradient of the pair, and of torch's own functions."""
    module, function = activation
    found = []
    for call in (lambda y: lean_pair(norm, module, y), lambda y: function(norm(y))):
        leaf = x.clone().requires_grad_()
        output = call(layout(leaf * 1))
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
        grad = torch.empty_like(output).copy_(grad)
        found.append((output.detach(), torch.autograd.grad(output, leaf, grad)[0]))
    return found


@pytest.mark.parametrize("short", [8, 1 << 16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equal_to_the_bit(monkeypatch: pytest.MonkeyPatch, name: str, layout: str, short: int) -> None:
    monkeypatch.setattr(bits, "_SHORT", short)
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            for affine in (True, False):
                held = torch.float32 if dtype is torch.bfloat16 else dtype
                norm = frozen_norm(len(shape), shape[1], held, affine=affine)
                mine, own = both(norm, ACTIVATIONS[name], torch.randn(shape).to(dtype), LAYOUTS[layout])
                for one, other in zip(mine, own, strict=True):
                    assert one.stride() == other.stride()
                    assert torch.equal(one, other)


def test_no_samples() -> None:
    """torch's own backward function ends the process there."""
    x = torch.zeros(0, 6, 4, 4, requires_grad=True)
    output = lean_pair(frozen_norm(4, 6, torch.float32), nn.ReLU(), x * 1)
    assert torch.autograd.grad(output.sum(), x)[0].shape == x.shape


def test_all_in_bfloat16() -> None:
    norm = frozen_norm(4, 6, torch.bfloat16)
    mine, own = both(norm, ACTIVATIONS["ReLU"], torch.randn(8, 6, 8, 8).bfloat16(), LAYOUTS["contiguous"])
    assert all(map(torch.equal, mine, own))


def test_it_is_one_step_that_keeps_a_bit_a_value() -> None:
    norm, x = frozen_norm(4, 6, torch.float32), torch.randn(8, 6, 8, 8, requires_grad=True)
    found: list[Tensor] = []
    kept = kept_bytes(lambda: found.append(lean_pair(norm, nn.ReLU(), x)), x.device) - 4 * x.numel()  # the output
    assert found[0].grad_fn is not None
    assert type(found[0].grad_fn.next_functions[0][0]).__name__ == "AccumulateGrad"
    assert kept <= x.numel() / 8 + 8 + 2 * 6 * 4


def hooked(norm: Any, act: nn.Module) -> None:
    norm.register_forward_hook(lambda module, args, output: output * 2)


def hooked_behind(norm: Any, act: nn.Module) -> None:
    act.register_full_backward_hook(lambda module, gave, got: (gave[0] * 2,))


def thawed(norm: Any, act: nn.Module) -> None:
    norm.weight.requires_grad_()


def training(norm: Any, act: nn.Module) -> None:
    norm.train()


def overridden(norm: Any, act: nn.Module) -> None:
    act.forward = lambda y: y * 3  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [hooked, hooked_behind, thawed, training, overridden])
def test_what_somebody_looks_at_or_trains_runs_on_its_own(change: Callable[[Any, nn.Module], None]) -> None:
    x, seen = torch.randn(8, 6, 4, 4), []
    for paired in (True, False):
        norm, act = frozen_norm(4, 6, torch.float32), nn.ReLU()
        for tensor, value in zip((*norm.parameters(), norm.running_mean, norm.running_var), range(1, 5), strict=True):
            tensor.fill_(value / 5)
        change(norm, act)
        leaf = x.clone().requires_grad_()
        output = lean_pair(norm, act, leaf * 1) if paired else act(norm(leaf * 1))
        output.square().sum().backward()
        weight = norm.weight.grad if norm.weight.grad is not None else torch.zeros(())
        seen.append((output.detach(), leaf.grad, weight, norm.running_mean.clone()))
    assert all(map(torch.equal, *seen))


def test_a_wrong_rank_is_the_norm_s_own_error() -> None:
    norm, x = frozen_norm(4, 6, torch.float32), torch.randn(8, 6, 4, requires_grad=True)
    with pytest.raises(ValueError, match="expected 4D input"):
        lean_pair(norm, nn.ReLU(), x * 1)


def test_every_class_and_function_has_a_test() -> None:
    seen = [activation for activation, _ in ACTIVATIONS.values()]
    assert {type(one) for one in seen if isinstance(one, nn.Module)} == set(pair.ACTIVATIONS)
    assert {one for one in seen if not isinstance(one, nn.Module)} == set(pair.NAMES.values())
