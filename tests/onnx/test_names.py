"""Names of outputs, precisions, and what onnxruntime's tools make of a file."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

import aimgraph
from aimgraph.errors import ConfigError, ExportError
from aimgraph.onnx.names import names_of
from aimgraph.onnx.session import MemorySession
from aimgraph.torch_private import tree_leaves
from tests.nets import randomise

MODES: tuple[dict[str, Any], ...] = ({"memory": "constant"}, {"memory": "input"}, {"memory": "inside"})


class Pair(NamedTuple):
    """What a forward may return."""

    first: Tensor
    second: Tensor


class Net(nn.Module):
    """Returns two tensors in a container of some kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.output, self.kind = nn.Linear(8, 4), nn.Linear(4, 3), kind

    def forward(self, x: Tensor) -> Any:
        h = self.stem(x).relu()
        y = self.output(h)
        if self.kind == "dict":
            return {"logits": y, "x": h, "past": (h + 1, [h + 2])}
        return {"tensor": y, "tuple": (y, h), "input": (y, x), "twice": (y, y)}[self.kind]


@pytest.mark.parametrize("mode", [{"memory": "none"}, *MODES], ids=lambda mode: mode["memory"])
@pytest.mark.parametrize(
    ("kind", "names"),
    [("tensor", ["output"]), ("dict", ["logits", "x_1", "past_0", "past_1_0"])],  # x is the input's name
)
def test_outputs_have_the_same_names_wherever_the_memory_is(
    kind: str, names: list[str], mode: dict[str, Any], tmp_path: Path
) -> None:
    check_names(kind, names, mode, tmp_path / "n.onnx")


@pytest.mark.parametrize("kind", ["input", "twice"])
def test_an_output_that_has_a_name_already_gets_one_of_its_own(kind: str, tmp_path: Path) -> None:
    check_names(kind, ["output_0", "output_1"], {"memory": "input"}, tmp_path / "n.onnx")


def check_names(kind: str, names: list[str], mode: dict[str, Any], path: Path) -> None:
    base, x = Net(kind).eval(), torch.randn(2, 8)
    aim = randomise(aimgraph.transform(base, x)).eval()
    module, options = (base, mode | {"example_inputs": x}) if mode["memory"] == "none" else (aim, mode)
    aimgraph.export_onnx(module, path, **options)
    session = MemorySession(path)
    assert session.outputs == tuple(names)
    for one, other in zip(session.run(x.numpy()), tree_leaves(module(x)), strict=True):
        assert np.abs(one - other.detach().numpy()).max() < 1e-5
    assert aimgraph.verify_onnx(path).ok


def test_a_state_keeps_its_names_behind_those_of_the_base(tmp_path: Path) -> None:
    x, path = torch.randn(2, 8), tmp_path / "n.onnx"
    options: dict[str, Any] = {"updates": "stages", "carry": "state", "start": "drawn", "shape": (4,)}
    aim = aimgraph.transform(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4)), x, **options).eval()
    for names in (None, ["logits"]):
        aimgraph.export_onnx(aim, path, memory="state", output_names=names)
        outputs = [item.name for item in onnxruntime.InferenceSession(path).get_outputs()]
        assert outputs == [*(names or ["output"]), "memory_out"]
    quant_pre_process(path, tmp_path / "q.onnx")


def test_names_that_are_asked_for(tmp_path: Path) -> None:
    aim = aimgraph.transform(Net("tuple").eval(), torch.randn(2, 8)).eval()
    aimgraph.export_onnx(aim, tmp_path / "n.onnx", output_names=["logits", "h"])
    assert MemorySession(tmp_path / "n.onnx").outputs == ("logits", "h")
    for names in (["logits"], ["h", "h"], "ab", []):
        with pytest.raises(ConfigError, match=r"the model has 2 outputs, by default \['output_0', 'output_1'\]"):
            names_of((torch.zeros(1), torch.zeros(1)), names)
    with pytest.raises(ConfigError, match="the model has 2 outputs"):
        aimgraph.export_onnx(aim, tmp_path / "n.onnx", output_names=["logits"])
    for name in ("x", "memory"):
        with pytest.raises(ConfigError, match=f"'{name}' is the name of an input, a weight or a memory already"):
            aimgraph.export_onnx(aim, tmp_path / "n.onnx", memory="input", output_names=[name, "h"])
    assert MemorySession(tmp_path / "n.onnx").outputs == ("logits", "h")  # a failed call leaves the file


def test_names_of_containers() -> None:
    one, other = torch.zeros(1), torch.ones(1)
    assert names_of(one) == names_of([one]) == ["output"]
    assert names_of((one, other)) == names_of([one, one]) == ["output_0", "output_1"]
    assert names_of(Pair(one, other)) == ["first", "second"]
    assert names_of((one, None, other)) == ["output_0", "output_2"]
    assert names_of({"a": [one, other], "b": {"c": one}}) == ["a_0", "a_1", "b_c"]
    assert names_of({"a": (one,), "a_0": other}) == ["a_0", "a_0_1"]


@pytest.mark.parametrize("options", MODES)
def test_onnxruntime_prepares_a_file_for_quantisation(options: dict[str, Any], tmp_path: Path) -> None:
    x, path = torch.randn(2, 3, 8, 8), tmp_path / "n.onnx"
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten(), nn.Linear(144, 2))
    aim = randomise(aimgraph.transform(nn.Sequential(*layers).eval(), x)).eval()
    aimgraph.export_onnx(aim, path, **options)
    quant_pre_process(path, tmp_path / "q.onnx")
    assert np.allclose(MemorySession(path).run(x.numpy())[0], aim(x).detach().numpy(), atol=1e-5)
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx")
    feeds = dict(zip((item.name for item in session.get_inputs()), (x.numpy(),), strict=False))
    if options["memory"] == "input":
        feeds["memory"] = aim.get_parameter("aim.memory.source.value").detach().numpy()[None]
    assert np.allclose(session.run(None, feeds)[0], aim(x).detach().numpy(), atol=1e-5)


def test_a_memory_of_another_count_of_rows_is_refused_by_onnxruntime(tmp_path: Path) -> None:
    x, path = torch.randn(2, 8), tmp_path / "n.onnx"
    aim = randomise(aimgraph.transform(Net("tensor").eval(), x)).eval()
    aimgraph.export_onnx(aim, path, memory="input")
    session = onnxruntime.InferenceSession(path)
    values = np.random.default_rng(0).standard_normal((4, aimgraph.plan(aim).memories[0].size), dtype=np.float32)
    features = np.ones((4, 8), np.float32)
    (whole,) = session.run(None, {"x": features, "memory": values})
    for row in range(4):  # each sample has read its own
        (one,) = session.run(None, {"x": features, "memory": values[row : row + 1]})
        assert np.allclose(one[row], whole[row], atol=1e-6)
    for rows, batch in ((2, 4), (3, 4), (4, 2), (2, 1)):
        with pytest.raises(Exception, match="Non-zero status code"):
            session.run(None, {"x": features[:batch], "memory": values[:rows]})


@pytest.mark.parametrize("options", MODES)
def test_a_model_in_half_precision_is_written_so(options: dict[str, Any], tmp_path: Path) -> None:
    x, path = torch.randn(2, 8), tmp_path / "n.onnx"
    whole = randomise(aimgraph.transform(Net("tensor").eval(), x)).eval()
    report = aimgraph.export_onnx(copy.deepcopy(whole).half(), path, **options)
    assert report.relative_difference < 1e-2
    session = MemorySession(path)
    assert session.about["float16"]
    (given,) = session.run(x.half().numpy())
    assert given.dtype == np.float16
    assert np.allclose(given, whole(x).detach().numpy(), atol=2e-2)
    assert aimgraph.verify_onnx(path).ok
    aimgraph.export_onnx(copy.deepcopy(whole).double(), path, **options)
    assert np.allclose(MemorySession(path).run(x.double().numpy())[0], whole(x).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("kinds", ["bfloat16", "bfloat16, float32"])
def test_other_precisions_say_what_to_do(kinds: str, tmp_path: Path) -> None:
    aim = aimgraph.transform(Net("tensor").eval(), torch.randn(2, 8)).eval()
    (aim.get_submodule("output") if "," in kinds else aim).bfloat16()
    with pytest.raises(ExportError, match=f"the parameters are in {kinds}: give float16=True"):
        aimgraph.export_onnx(aim, tmp_path / "n.onnx")
    if "," not in kinds:
        assert aimgraph.export_onnx(aim, tmp_path / "n.onnx", float16=True).relative_difference < 1e-2
