"""Models that take some numbers only: an example's own ones are tried first."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.inputs.as_json import inputs_from_json, inputs_to_json
from aimgraph.inputs.batch import random_inputs
from aimgraph.inputs.examples import recorded
from aimgraph.inputs.samples import samples_for


class _Table(nn.Module):
    """Category codes in a matrix of floats."""

    def __init__(self, *, decides: bool = False) -> None:
        super().__init__()
        self.codes, self.head, self.decides = nn.Embedding(3, 4), nn.Linear(8, 2), decides

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.codes(x[:, 0].long()), x[:, 1:]], 1)
        if self.decides and h.isnan().any():
            raise ValueError
        return self.head(h)


class _Inside(nn.Module):
    """A part that reads codes, and decides by values."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        codes = F.one_hot(x[:, 0].long(), 3).float()
        return self.mix(codes) if codes.sum() > 0 else codes


class _Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        if (x < 0).any():
            raise ValueError("counts are not negative")
        return self.head(x.log1p())


X = torch.cat([torch.arange(6).remainder(3).float()[:, None], torch.linspace(0, 1, 24).reshape(6, 4)], 1)


def _tables() -> list[nn.Module]:
    return [_Table(), _Table(decides=True), nn.Sequential(_Inside(), nn.Linear(4, 2)), _Counts()]


@pytest.mark.parametrize("base", _tables())
def test_codes_in_floats(base: nn.Module, tmp_path: Path) -> None:
    aim = aimgraph.transform(base.eval(), X)
    assert torch.equal(aim(X), base(X))
    assert aimgraph.verify(base, aim).ok
    assert aimgraph.verify(base, aim, X).ok
    torch.testing.assert_close(aimgraph.fold(aim)(X), base(X))
    aimgraph.save(aim, tmp_path / "saved")
    assert aimgraph.verify(base, aimgraph.load(tmp_path / "saved", base)).ok


@pytest.mark.parametrize("memory", ["constant", "input"])
def test_codes_in_floats_are_exported(tmp_path: Path, memory: str) -> None:
    pytest.importorskip("onnxruntime")
    aim = aimgraph.transform(_Table().eval(), X)
    assert aimgraph.export_onnx(aim, tmp_path / "x.onnx", memory=memory).max_difference < 1e-5
    assert aimgraph.verify_onnx(tmp_path / "x.onnx").ok


def test_codes_can_be_left_to_an_example_of_verify() -> None:
    base = _Table().eval()
    aim = aimgraph.transform(base, torch.zeros(2, 5))
    assert aimgraph.verify(base, aim, X).ok


def test_which_way_values_lead_is_decided_by_the_example() -> None:
    class Ways(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) if x.min() >= 0 else self.other(x)

    for x, called in ((X, "one"), (X - 10, "other")):
        plan = aimgraph.plan(Ways(), x)
        assert [read.site for read in plan.memories[0].reads] == [called]


def test_numbers_are_drawn_where_the_model_takes_them() -> None:
    seen = samples_for(nn.Linear(5, 2), ((X,), {}), "cpu")
    assert (seen.runs, seen.drawn, seen.own) == (True, True, False)
    assert torch.equal(seen.at(2, 7)[0][0], random_inputs(((X,), {}), 2, 7)[0][0])
    codes = samples_for(_Table(), ((X,), {}), "cpu")
    assert codes.own
    assert torch.equal(codes.at(8, 1)[0][0], X[[1, 2, 3, 4, 5, 0, 1, 2]])


@pytest.mark.parametrize("x", [torch.zeros(2, 5), torch.full((2, 5), float("nan")), torch.rand(2, 5).to("meta")])
def test_placeholders_have_no_numbers(x: Tensor) -> None:
    seen = samples_for(nn.Linear(5, 2), ((x,), {}), "cpu")
    assert (seen.runs, seen.drawn) == (False, True)
    assert recorded(((x,), {}))[0][0].is_meta


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_numbers_in_json(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.1, -1e-3], [3.0, 1 / 3]], dtype=dtype).requires_grad_()
    ((read,), _) = inputs_from_json(inputs_to_json(((x,), {})), "here")
    assert read.requires_grad
    assert read.dtype == dtype
    assert torch.equal(read, x)


@pytest.mark.parametrize("raw", ["", "AAAA", "not base64!", 5])
def test_numbers_in_json_that_are_none(raw: object) -> None:
    data = {"tuple": [{"tuple": [{"tensor": {"dtype": "float32", "shape": [2], "base64": raw}}]}, {"dict": []}]}
    with pytest.raises(aimgraph.CheckpointError, match="here"):
        inputs_from_json(data, "here")
