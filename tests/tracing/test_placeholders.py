"""Arguments of a forward: constants, defaults, and forwards that take anything."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from tests.tracing.bases import Base, X


def test_flags_given_as_examples_are_constants() -> None:
    class Net(Base):
        def forward(self, x: Tensor, mask: Tensor | None, flag: bool = True, scale: float = 1.0) -> Tensor:
            y = self.mix(x) * scale
            y = y if mask is None else y * mask
            return y if flag else -y

    base = Net()
    aim = aimgraph.transform(base, ((X, None), {"flag": False, "scale": 2.0}))
    assert torch.equal(aim(X, None, flag=False, scale=3.0), base(X, None, flag=False, scale=3.0))
    with pytest.warns(UserWarning, match=r"'flag' was False in the example.*this call gives True.*forward of Net"):
        assert torch.equal(aim(X, None, flag=True, scale=2.0), base(X, None, flag=True, scale=2.0))
    with pytest.warns(UserWarning, match=r"'mask' was None in the example.*this call gives a Tensor"):
        assert torch.equal(aim(X, X, flag=False, scale=2.0), base(X, X, flag=False, scale=2.0))


_ACTIVATION = nn.GELU()


class _Borrowed(Base):
    """Calls a module that it does not hold."""

    def run(self, x: Tensor, *more: Tensor, scale: Tensor, **rest: Any) -> Tensor:
        return _ACTIVATION(self.mix(x)) * scale + sum(more) + sum(rest.values())


def _passing(forward: Any) -> Any:
    """A decorator whose wrapper has less arguments of its own than the forward."""

    @functools.wraps(forward)
    def passing(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return passing


class _Anything(_Borrowed):
    @_passing
    def forward(
        self, x: Tensor, *more: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32, **rest: Any
    ) -> Tensor:
        return self.run(x, *more, scale=scale, **rest).to(dtype)


def test_forwards_that_take_anything() -> None:
    base, given = _Anything(), {"scale": X + 1, "shift": X, "other": X * 2}
    aim = aimgraph.transform(base, ((X, X + 2, X), given), verify="full")
    assert torch.equal(aim(X + 1, X, X * 3, **given), base(X + 1, X, X * 3, **given))
    assert aimgraph.plan(aim).fallback == 0
    assert aimgraph.verify(base, aim).ok
    with pytest.warns(UserWarning, match="'shift' holds .* where it held Tensor in the example"):
        assert torch.equal(aim(X, X, X, scale=X, other=X), base(X, X, X, scale=X, other=X))
    with pytest.warns(UserWarning, match="'dtype' was left at its default"):
        seen = aim(X, X, X, **given, dtype=torch.float64)
    assert torch.equal(seen, base(X, X, X, **given, dtype=torch.float64))
