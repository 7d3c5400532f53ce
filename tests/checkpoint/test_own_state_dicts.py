"""Models whose class makes state dicts of its own: other names, a part of them, nested, or none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.errors import CheckpointError
from tests.nets import randomise


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Prefixed(Plain):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {f"model.{key}": value for key, value in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict({key.removeprefix("model."): one for key, one in state.items()}, *args, **kwargs)


class Nested(Plain):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {"model": super().state_dict(*args, **kwargs), "version": 3}

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> Any:
        return super().load_state_dict(state["model"], *args, **kwargs)


class HeadOnly(Plain):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if key.startswith("head")}


class Refusing(Plain):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("this class saves itself")


class Below(nn.Module):
    """Holds one that refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Refusing()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def example() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("lowering", ["split", "concat"])
@pytest.mark.parametrize("kind", [Prefixed, Nested, HeadOnly, Refusing])
def test_a_model_is_verified_and_kept_by_torchs_own_names(kind: type[nn.Module], lowering: str, tmp_path: Path) -> None:
    base, x = kind().eval(), example()
    aim = aimgraph.transform(base, x, lowering=lowering)
    report = aimgraph.verify(base, aim)
    assert report.ok, report
    assert f"{kind.__name__}.state_dict makes" in str(report).replace("\n", "")
    wanted = randomise(aim).eval()(x)
    for what in ("memory", "all"):
        aimgraph.save(aim, tmp_path / what, what=what)
        assert torch.equal(aimgraph.load(tmp_path / what, base).eval()(x), wanted)
    other = aimgraph.load(tmp_path / "all", kind()).eval()
    assert torch.equal(other(x), wanted)


def test_a_changed_weight_is_found_all_the_same() -> None:
    base = HeadOnly().eval()
    aim = aimgraph.transform(base, example())
    with torch.no_grad():
        aim.conv.weight[0, 0, 0, 0] += 1  # type: ignore[operator]
    failed = {check.name for check in aimgraph.verify(base, aim).checks if not check}
    assert "base weights are unchanged" in failed


def test_a_layer_that_gives_no_state_dict(tmp_path: Path) -> None:
    base, x = Below().eval(), example()
    aim = aimgraph.transform(base, x)
    report = aimgraph.verify(base, aim)
    assert report.ok
    told = {check.name: check for check in report.checks}
    for name in ("base checkpoints load", "base weights are unchanged"):
        assert not told[name].compared
        assert "in state_dict: this class saves itself" in told[name].detail
    with pytest.raises(CheckpointError, match=r"state dict of Below .* in state_dict: this class saves itself"):
        aimgraph.save(aim, tmp_path / "memory")
    with pytest.raises(CheckpointError, match="Below"):
        aimgraph.transform(base, x, lowering="concat")
    assert aimgraph.fold(aim)(x).shape == (4, 5)
    aimgraph.export_onnx(aim, tmp_path / "aim.onnx", x)
