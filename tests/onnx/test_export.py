"""ONNX files: agreement, literal form, dynamic batch, and what is refused."""

import copy
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.errors import ExportError
from aimgraph.models_zoo import resnet50_keras, vgg16
from aimgraph.onnx import export as export_module
from aimgraph.onnx.export import export_onnx
from tests.marks import mostly_slow
from tests.nets import TwoInputs, build, randomise, updates_for

OPTIONS: dict[str, dict[str, object]] = {
    "split": {},
    "concat": {"lowering": "concat"},
    "resize": {"read": "resize", "shape": (2, 3, 2)},
    "updates": {"updates": "stages", "carry": "state", "shape": (2, 2, 3)},
}
NAMES = [
    "conv1d",
    "conv2d",
    "grouped",
    "depthwise",
    "transposed2d",
    "linear",
    "tokens",
    "channels_last",
    "residual",
    "functional_dropout",
    "same_padding_class",
]


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", mostly_slow(NAMES, kept=["transposed2d", "residual"]))
def test_agreement_at_other_batch_sizes(name: str, option: str, tmp_path: Path) -> None:
    base, x = build(name)
    options = dict(OPTIONS[option])
    if "updates" in options:
        options |= updates_for(base, x)
    aim = randomise(aimgraph.transform(base, x, **options)).train()
    report = aimgraph.export_onnx(aim, tmp_path / "model.onnx")
    assert aim.training
    assert report.relative_difference <= 1e-4
    aim.eval()
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for batch in (1, 5):
        sample = torch.randn(batch, *x.shape[1:])
        got = session.run(None, {session.get_inputs()[0].name: sample.numpy()})[0]
        with torch.no_grad():
            expected = aim(sample)
        assert (torch.as_tensor(got) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


def test_concat_form_shows_the_literal_seed_form(tmp_path: Path) -> None:
    base, x = build("conv2d")
    aim = aimgraph.transform(base, x, lowering="concat", shape=(3, 4, 7), start="drawn")
    report = aimgraph.export_onnx(aim, tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert {"Reshape", "Pad", "Concat", "Conv"} <= set(report.operators)
    weights = {item.name: list(item.dims) for item in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    k = [-(-84 // (8 * 9)), -(-84 // (6 * 7))]
    assert [weights[conv.input[1]] for conv in convs] == [[6, 4 + k[0], 3, 3], [4, 6 + k[1], 3, 3]]


@pytest.mark.slow
@pytest.mark.parametrize(("factory", "size"), [(lambda: resnet50_keras(7), 64), (lambda: vgg16(7, hidden=32), 32)])
def test_seed_networks(factory: object, size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, size, size)
    for lowering in ("split", "concat"):
        aim = aimgraph.transform(factory(), x, lowering=lowering, start="drawn")  # type: ignore[operator]
        report = aimgraph.export_onnx(aim, tmp_path / f"{lowering}.onnx")
        assert report.relative_difference <= 1e-4
        assert report.batch_sizes == (1, 3)


def test_keyword_inputs(tmp_path: Path) -> None:
    inputs = ((torch.randn(2, 3, 6, 6),), {"vector": torch.randn(2, 5)})
    aim = randomise(aimgraph.transform(TwoInputs(), inputs))
    report = aimgraph.export_onnx(aim, tmp_path / "model.onnx")
    assert report.relative_difference <= 1e-4


def test_a_write_in_eval_is_refused_not_dropped(tmp_path: Path) -> None:
    base, x = build("conv2d")
    aim = aimgraph.transform(base, x, updates=("0",), carry="state", write_in_eval=True)
    with pytest.raises(aimgraph.ExportError, match="writes its carried state in eval mode"):
        aimgraph.export_onnx(aim, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_carried_state_is_exported_as_it_stands(tmp_path: Path) -> None:
    base, x = build("linear")
    aim = randomise(aimgraph.transform(base, x, updates=("0",), carry="state", shape=(4,)))
    aim.train()(x)
    state = copy.deepcopy(aim.get_buffer("aim.memory.carry.state"))
    report = aimgraph.export_onnx(aim, tmp_path / "model.onnx")
    assert report.relative_difference <= 1e-4
    assert state.any()
    assert torch.equal(state, aim.get_buffer("aim.memory.carry.state"))


def test_disagreement_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, x = build("conv2d")
    aim = aimgraph.transform(base, x)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"precious")
    monkeypatch.setattr(export_module.Comparison, "run", lambda *_: (0.5, 0.25))
    with pytest.raises(
        aimgraph.ExportError, match=r"disagrees with torch by max\|d\| = 0\.5, .* = 0\.25 > 0\.0001; nothing"
    ):
        aimgraph.export_onnx(aim, path)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


class _Unexportable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.odd = nn.Linear(3, 3), _Odd()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.odd(self.mix(x))


class _Odd(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(x.T @ x).abs()


class Halves(nn.Module):
    """Takes two batches as one, and takes them apart in a way that the exporter knows for one batch size only."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        one, other = torch.chunk(self.mix(torch.cat([x, y])), 2)
        return one * other


def test_a_fixed_batch_size_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"fixed the batch size: input 'x' takes \[2, 4\] only"):
        export_onnx(Halves(), tmp_path / "x.onnx", (torch.zeros(3, 4), torch.zeros(3, 4)), memory="none")
    assert not list(tmp_path.iterdir())


def test_the_bases_own_limit_is_named(tmp_path: Path) -> None:
    aim = aimgraph.transform(_Unexportable(), torch.randn(4, 3))
    with pytest.raises(aimgraph.ExportError, match="can't export the base alone either"):
        aimgraph.export_onnx(aim, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["functional_dropout", "grouped"])
def test_a_disabled_memory_exports_the_base(name: str, tmp_path: Path) -> None:
    """In concat form the widened layers are called with their own part of the weight."""
    base, x = build(name)
    aim = randomise(aimgraph.transform(base, x, lowering="concat")).eval()
    with aimgraph.disable_memory(aim):
        aimgraph.export_onnx(aim, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.as_tensor(got), base.eval()(x), atol=1e-5)


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", ["residual", "linear", "channels_last"])
def test_a_folded_module_exports_for_the_size_it_was_folded_for(name: str, fuse: bool, tmp_path: Path) -> None:
    base, x = build(name)
    aim = randomise(aimgraph.transform(base, x)).eval()
    folded = aimgraph.fold(aim, fuse_batchnorm=fuse)
    report = aimgraph.export_onnx(folded, tmp_path / "folded.onnx")
    assert report.relative_difference <= 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "folded.onnx"))
    for batch in (1, 4):
        sample = torch.randn(batch, *x.shape[1:])
        with torch.no_grad():
            expected = aim(sample)
        got = torch.as_tensor(session.run(None, {session.get_inputs()[0].name: sample.numpy()})[0])
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert not {"Pad", "Concat"} & report.operators.keys()
    assert ("BatchNormalization" in report.operators) == (name == "residual" and not fuse)


def spoil(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.reshape(-1)[0] = float("nan")


@pytest.mark.parametrize("name", ["aim.memory.source.value", "aim.memory.reads.head.weight", "stem.0.weight"])
@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_not_a_number_is_refused_by_its_name(name: str, lowering: str, tmp_path: Path) -> None:
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base, x, lowering=lowering)).eval()
    state = aim.state_dict()
    spoil(state[name])
    aim.load_state_dict(state)
    with pytest.raises(ExportError, match=rf"not-a-number in {name} \(1 of "):
        aimgraph.export_onnx(aim, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_not_a_number_in_a_set_that_is_not_in_use_is_no_matter(tmp_path: Path) -> None:
    base, x = build("conv2d")
    aim = randomise(aimgraph.transform(base, x)).eval()
    aim.add_memory_set("b")
    aim.add_memory_set("c", share_reads=True)
    for name in ("b", "c"):
        spoil(aim.get_parameter(f"aim.sets.{name}.memory.source.value"))
    aimgraph.export_onnx(aim, tmp_path / "model.onnx")
    for name in ("b", "c"):
        with aim.using(name), pytest.raises(ExportError, match=rf"not-a-number in aim\.sets\.{name}\.memory\.source"):
            aimgraph.export_onnx(aim, tmp_path / "model.onnx")
    spoil(aim.get_parameter("aim.memory.source.value"))
    with pytest.raises(ExportError, match=r"not-a-number in 0\.aim\.memory\.maps\.0\.value"):
        aimgraph.export_onnx(nn.Sequential(aimgraph.fold(aim), nn.ReLU()), tmp_path / "model.onnx", x)


class Roots(nn.Module):
    """Gives not-a-number where what it takes the root of is negative."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.mix, self.shift = nn.Linear(4, 6), shift
        self.register_buffer("mark", torch.tensor([float("nan"), 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return (self.mix(x) + self.shift).sqrt() + self.mark[1]


def test_outputs_that_are_not_numbers(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    aimgraph.export_onnx(aimgraph.transform(Roots(0.1), x).eval(), tmp_path / "some.onnx")
    assert aimgraph.verify_onnx(tmp_path / "some.onnx")
    with pytest.raises(ExportError, match=r"output 0 is not-a-number at every place .* not-a-number in mark \(1 of 2"):
        aimgraph.export_onnx(aimgraph.transform(Roots(-100.0), x).eval(), tmp_path / "all.onnx")


HOOKED: list[dict[str, Any]] = [{}, {"memory": "inside"}, {"dynamic_size": True}, {"float16": True}]


@pytest.mark.parametrize("options", mostly_slow(HOOKED, kept=[{}]))
def test_hooks_of_the_model_are_exported(options: dict[str, Any], tmp_path: Path) -> None:
    base, x = build("residual")
    base.register_forward_hook(lambda _, inputs, output: output * 3)
    base.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 0.5,))
    aim = randomise(aimgraph.transform(base, x)).eval()
    report = aimgraph.export_onnx(aim, tmp_path / "model.onnx", **options)
    assert report.relative_difference < (1e-2 if options.get("float16") else 1e-4)
    model = onnx.load(str(tmp_path / "model.onnx"))
    assert [item.name for item in model.graph.input] == ["x"]
    aimgraph.export_onnx(base.eval(), tmp_path / "base.onnx", x, memory="none")
    aimgraph.export_onnx(nn.Sequential(aim), tmp_path / "part.onnx", x)
    with pytest.raises(ExportError, match="Residual has hooks around its forward, which would be given memories"):
        aimgraph.export_onnx(aim, tmp_path / "input.onnx", memory="input")
    assert not (tmp_path / "input.onnx").exists()
