"""examples/attention_read.py: a read of the user's own."""

import copy
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.runtime.specs import PARTS
from tests.nets import apart, build, randomise

EXAMPLE = Path(__file__).parents[2] / "examples" / "attention_read.py"

pytestmark = pytest.mark.usefixtures("attention")


@pytest.fixture
def attention(kept_parts: None) -> Any:
    return runpy.run_path(str(EXAMPLE))["AttentionRead"]


def made(net: str = "residual", **options: Any) -> tuple[nn.Module, aimgraph.AimModule, Tensor]:
    model, x = build(net)
    return model, aimgraph.transform(model, x, shape=(5, 1, 4), read="attention", **options), x


def test_it_is_softmax_attention(attention: Any) -> None:
    read = attention(aimgraph.ReadSpec((5, 1, 4), (2, 3)))
    memory = torch.randn(3, 20)
    rows = memory.reshape(3, 5, 4)
    expected = nn.functional.scaled_dot_product_attention(read.query.expand(3, -1, -1), read.key(rows), rows)
    torch.testing.assert_close(read(memory), expected.reshape(3, 2, 3, 4))


@pytest.mark.parametrize("net", ["residual", "linear", "tokens", "attention", "transposed2d", "standardised"])
def test_the_output_stays_until_it_is_trained(net: str) -> None:
    model, aim, x = made(net)
    assert torch.equal(aim.eval()(x), model.eval()(x))
    if net != "residual":  # which drops at random
        assert torch.equal(aim.train()(x), model.train()(x))


def test_every_parameter_gets_a_gradient() -> None:
    _, aim, x = made()
    randomise(aim)(x).square().sum().backward()
    views = {name: p.grad for name, p in aim.named_parameters() if ".views." in name}
    assert len(views) == 2 * len(aimgraph.plan(aim).memories[0].reads)
    assert not [name for name, grad in views.items() if grad is None or not grad.any()]


def test_saved_and_loaded_bit_for_bit(tmp_path: Path, attention: Any) -> None:
    model, aim, x = made()
    aimgraph.save(randomise(aim).eval(), tmp_path)
    assert torch.equal(aimgraph.load(tmp_path, model).eval()(x), aim(x))
    del PARTS["read"]["attention"]
    again = aimgraph.load(tmp_path, model, components={"attention": attention})
    assert torch.equal(again.eval()(x), aim(x))
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in aim.state_dict().items())


def test_it_folds() -> None:
    _, aim, x = made()
    folded = aimgraph.fold(randomise(aim).eval())
    assert not folded.folds.left
    assert apart(folded, aim, x) <= 1e-4


@pytest.mark.parametrize("memory", ["constant", "input", "inside"])
def test_onnxruntime_agrees(tmp_path: Path, memory: Any) -> None:
    _, aim, _ = made()
    report = aimgraph.export_onnx(randomise(aim).eval(), tmp_path / "model.onnx", memory=memory, tolerance=1e-4)
    assert report.relative_difference <= 1e-4


def test_each_sample_attends_over_its_own_rows() -> None:
    _, aim, x = made()
    randomise(aim).eval().add_memory_set("b", share_reads=True)
    with torch.no_grad():
        aim.get_submodule("aim.sets.b.memory.source").value.normal_()
    with aim.using("b"):
        expected = copy.deepcopy(aim)(x)
    with aim.using(["default", "b"]):
        both = aim(x)
    torch.testing.assert_close(both, torch.stack([aim(x)[0], expected[1]]))
    assert not torch.allclose(both[1], aim(x)[1])


def test_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "the same output as before, bit for bit: True" in capsys.readouterr().out
