"""examples/lstm_write.py: an update block of the user's own."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.runtime.specs import PARTS
from tests.marks import mostly_slow
from tests.nets import build, randomise

EXAMPLE = Path(__file__).parents[2] / "examples" / "lstm_write.py"

pytestmark = pytest.mark.usefixtures("lstm")

WAYS: dict[str, dict[str, Any]] = {
    "replace": {},
    "gated": {"mode": "gated"},
    "pooled": {"pool": "batch"},
    "carried": {"carry": "state"},
}


@pytest.fixture
def lstm(kept_parts: None) -> Any:
    return runpy.run_path(str(EXAMPLE))["LSTMWrite"]


def made(net: str = "residual", **options: Any) -> tuple[nn.Module, aimgraph.AimModule, Tensor]:
    model, x = build(net)
    options = {"updates": "stages"} | options
    return model, aimgraph.transform(model, x, shape=(2, 2, 3), block="lstm", **options), x


@pytest.mark.parametrize("way", WAYS)
def test_a_memory_that_starts_at_zero(way: str) -> None:
    model, aim, x = made(start="zero_values", **WAYS[way])
    assert torch.equal(aim.eval()(x), model.eval()(x))
    assert aimgraph.verify(model, aim).ok


def test_it_is_the_cell_of_an_lstm(lstm: Any) -> None:
    """`nn.LSTMCell` with the same weights, whose output is not looked at, at each of four places."""
    block = lstm(aimgraph.BlockSpec((2, 2, 3), 5, (4, 6), False, lambda spec: nn.Identity()))
    memory, features = torch.randn(7, 12), torch.randn(7, 5, 4, 6)
    seen = nn.functional.adaptive_avg_pool2d(features, (2, 2)).permute(0, 2, 3, 1).reshape(28, 5)
    cell = memory.reshape(28, 3)
    forget, write, new = block.gates.weight.chunk(3)
    one = nn.LSTMCell(8, 3)
    with torch.no_grad():
        one.weight_ih.copy_(torch.cat([write, forget, new, torch.zeros(3, 8)]))
        one.weight_hh.zero_()
        bias = block.gates.bias.chunk(3)
        one.bias_ih.copy_(torch.cat([bias[1], bias[0], bias[2], torch.zeros(3)]))
        one.bias_hh.zero_()
    _, expected = one(torch.cat([seen, cell], 1), (torch.zeros(28, 3), cell))
    torch.testing.assert_close(block(memory, features), expected.reshape(7, 12))


@pytest.mark.parametrize("way", WAYS)
def test_the_output_stays_until_it_is_trained(way: str) -> None:
    model, aim, x = made(**WAYS[way])
    assert torch.equal(aim.eval()(x), model.eval()(x))
    model, aim, x = made("linear", updates=("0",), **WAYS[way])
    assert torch.equal(aim.train()(x), model.train()(x))


@pytest.mark.parametrize("way", WAYS)
def test_every_parameter_gets_a_gradient(way: str) -> None:
    _, aim, x = made(**WAYS[way])
    randomise(aim)(x).square().sum().backward()
    own = {name: p.grad for name, p in aim.named_parameters() if ".updates." in name}
    assert own
    assert not [name for name, grad in own.items() if grad is None or not grad.any()]


@pytest.mark.parametrize("way", WAYS)
def test_saved_and_loaded_bit_for_bit(way: str, tmp_path: Path, lstm: Any) -> None:
    _, aim, x = made(**WAYS[way])
    randomise(aim).train()(x)
    aimgraph.save(aim.eval(), tmp_path)
    del PARTS["block"]["lstm"]
    again = aimgraph.load(tmp_path, aimgraph.strip(aim), components={"lstm": lstm}).eval()
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in aim.state_dict().items())
    assert torch.equal(again(x), aim(x))


def test_what_it_writes_is_not_folded() -> None:
    _, aim, x = made()
    folded = aimgraph.fold(randomise(aim).eval())
    written = {read.name for read in aimgraph.plan(aim).memories[0].reads if read.calls[0].value}
    assert written
    assert folded.folds.left == dict.fromkeys(written, "it reads what features have written")
    torch.testing.assert_close(folded(x), aim(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", mostly_slow(WAYS, kept=["gated"]))
@pytest.mark.parametrize("memory", ["constant", "state"])
def test_onnxruntime_agrees(tmp_path: Path, way: str, memory: Any) -> None:
    _, aim, _ = made(**WAYS[way])
    report = aimgraph.export_onnx(randomise(aim).eval(), tmp_path / "model.onnx", memory=memory, tolerance=1e-4)
    assert report.relative_difference <= 1e-4


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "the same output as before, bit for bit: True" in capsys.readouterr().out
