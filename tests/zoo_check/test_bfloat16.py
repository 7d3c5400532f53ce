"""bfloat16 autocast by way of float32: the types and refusals of the real one, its numbers up to one rounding."""

import pytest
import torch
from torch import Tensor, nn

from aimgraph.zoo_check.bfloat16 import Rounded, autocast


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=4, padding="same"),
        nn.BatchNorm2d(8),
        nn.Flatten(2),
        nn.Linear(36, 5),
    )


def test_types_and_numbers_are_those_of_the_real_one() -> None:
    module, x = network(), torch.randn(2, 3, 8, 8)
    seen: dict[str, list[Tensor]] = {"real": [], "rounded": []}
    where = ""
    for layer in module:
        layer.register_forward_hook(lambda _, __, output: seen[where].append(output.detach()))
    for where in seen:
        with torch.autocast("cpu", torch.bfloat16):
            if where == "rounded":
                with Rounded():
                    module(x)
            else:
                module(x)
    assert [one.dtype for one in seen["rounded"]] == [one.dtype for one in seen["real"]]
    assert torch.bfloat16 in {one.dtype for one in seen["real"]}
    for one, other in zip(seen["rounded"], seen["real"], strict=True):
        torch.testing.assert_close(one, other, rtol=2**-6, atol=2**-6)


def test_what_torch_refuses_is_refused() -> None:
    half = nn.Linear(3, 2, dtype=torch.bfloat16)
    with Rounded(), pytest.raises(RuntimeError, match="same dtype"):
        half(torch.randn(2, 3))


@pytest.mark.parametrize("kernels", [True, False])
def test_processors_with_kernels_use_them(monkeypatch: pytest.MonkeyPatch, kernels: bool) -> None:
    monkeypatch.setattr("aimgraph.zoo_check.bfloat16.has_bfloat16_kernels", lambda: kernels)
    used: list[bool] = []
    original = Rounded.__torch_dispatch__

    def watched(self: Rounded, func: object, types: object, args: object = (), kwargs: object = None) -> object:
        used.append(True)
        return original(self, func, types, args, kwargs)

    monkeypatch.setattr(Rounded, "__torch_dispatch__", watched)
    with autocast():
        assert nn.Linear(3, 2)(torch.randn(1, 3)).dtype is torch.bfloat16
    assert bool(used) is not kernels
