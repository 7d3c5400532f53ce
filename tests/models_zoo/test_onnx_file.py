"""ONNX files as models: read, given a memory, written again."""

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import aimgraph
from aimgraph.cli.main import cli
from aimgraph.models_zoo.loader import load_model
from tests.nets import randomise


def _write(path: Path, opset: int, **reshape: int) -> Path:
    """A convolution, the mean over its map in the operator of an opset, and a linear layer."""
    draw = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(draw.standard_normal(shape).astype(np.float32), name)

    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    shape = numpy_helper.from_array(np.array([-1, 4]), "shape")
    mean = ["h", "axes"] if opset >= 18 else ["h"]
    options = {} if opset >= 18 else {"axes": [2, 3]}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="stem", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["c"], ["h"], name="relu"),
        helper.make_node("ReduceMean", mean, ["m"], name="mean", keepdims=1, **options),
        helper.make_node("Reshape", ["m", "shape"], ["f"], name="flat", **reshape),
        helper.make_node("Identity", ["e"], ["d"], name="shared"),
        helper.make_node("Gemm", ["f", "v", "d"], ["y"], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 12, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5])],
        [constant("w", 4, 3, 3, 3), constant("b", 4), constant("v", 5, 4), constant("e", 5), axes, shape],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, str(path))
    return path


def _by_onnxruntime(path: str | Path, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize(("opset", "reshape"), [(13, {}), (17, {"allowzero": 0}), (18, {"allowzero": 1})])
def test_a_file_is_a_model(opset: int, reshape: dict[str, int], tmp_path: Path) -> None:
    path = _write(tmp_path / "net.onnx", opset, **reshape)
    base, x = load_model(str(path)), torch.randn(2, 3, 12, 10)
    assert not base.training
    assert torch.allclose(base(x), _by_onnxruntime(path, x), atol=1e-5)
    with pytest.warns(UserWarning, match=r"assuming one input of shape \[1, 3, 12, 10\]"):
        aim = aimgraph.transform(base)
    assert [read.site for read in aimgraph.plan(aim).memories[0].reads] == ["stem", "head"]
    assert torch.equal(aim(x), base(x))
    assert aimgraph.verify(base, aim, x).ok


def test_a_network_of_the_zoo_goes_in_and_out(tmp_path: Path) -> None:
    original, x = load_model("zoo/mlp", features=12, hidden=(16,), num_classes=4).eval(), torch.randn(3, 12)
    aimgraph.export_onnx(aimgraph.transform(original, x), tmp_path / "in.onnx", x)
    base = load_model(str(tmp_path / "in.onnx"))
    assert torch.allclose(base(x), original(x), atol=1e-6)
    aim = aimgraph.transform(base, x)
    assert torch.equal(aim(x), base(x))
    assert aimgraph.verify(base, aim, x).ok
    randomise(aim)
    aimgraph.export_onnx(aim, tmp_path / "out.onnx", x)
    assert torch.allclose(_by_onnxruntime(tmp_path / "out.onnx", x), aim(x), atol=1e-5)
    assert not torch.allclose(aim(x), original(x), atol=1e-2)


def test_the_command_line_takes_a_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "net.onnx", 17)
    result = CliRunner().invoke(cli, ["transform", str(path), "--checkpoint", str(tmp_path / "memory")])
    assert result.exit_code == 0, result.output
    assert "stem" in result.output
    base, x = load_model(str(path)), torch.randn(2, 3, 12, 10)
    assert torch.equal(aimgraph.load(tmp_path / "memory", base)(x), base(x))


def test_what_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(aimgraph.ExampleInputError, match=r"nowhere\.onnx: there is no such file"):
        load_model(str(tmp_path / "nowhere.onnx"))
    (tmp_path / "text.onnx").write_text("a table of numbers")
    with pytest.raises(aimgraph.ExampleInputError, match=r"text\.onnx is no ONNX file"):
        load_model(str(tmp_path / "text.onnx"))
    path = _write(tmp_path / "net.onnx", 17)
    model = onnx.load(str(path))
    model.graph.node[1].op_type = "Hardmax"
    onnx.save(model, str(path))
    with pytest.raises(aimgraph.TraceError, match=r"onnx2torch can't read it: .*Hardmax.*at opset 17 or below"):
        load_model(str(path))

    def missing(name: str, *rest: Any) -> Any:
        if name == "onnx2torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found(name, *rest)

    found = importlib.import_module
    monkeypatch.delitem(sys.modules, "onnx2torch", raising=False)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(aimgraph.ExampleInputError, match=r"onnx2torch is not installed.*aimgraph\[onnx-in\]"):
        load_model(str(path))
