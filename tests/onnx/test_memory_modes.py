"""ONNX files whose memory is a constant, an input or a state; what they say of themselves; how they are run."""

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import aimgraph
from aimgraph.emit.record import record_of
from aimgraph.errors import ConfigError, ExportError
from aimgraph.onnx.session import MemorySession
from tests.marks import mostly_slow
from tests.nets import NETS, build, randomise, run, updates_for
from tests.project.test_matrix import Attention

FAMILIES = [name for name in NETS if name != "sample_kernels"]  # whose kernels the exporter can't follow


def made(name: str, **options: Any) -> tuple[aimgraph.AimModule, Tensor]:
    base, x = build(name)
    return randomise(aimgraph.transform(base.eval(), x, **options)).eval(), x


def tensors(output: Any) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def close(given: Any, wanted: Any, most: float = 1e-4) -> bool:
    wanted = wanted.detach().numpy() if isinstance(wanted, Tensor) else wanted
    return bool(np.abs(given - wanted).max() <= most * np.abs(wanted).max())


KEPT = ["attention", "depthwise", "residual", "channels_last", "conv1d", "tokens"]


@pytest.mark.parametrize("name", mostly_slow(FAMILIES, kept=KEPT))
def test_a_memory_as_input(name: str, tmp_path: Path) -> None:
    if name == "attention" and torch.__version__ < (2, 10):
        pytest.skip(f"torch {torch.__version__} exports its attention for one batch size, without a memory, too")
    aim, x = made(name)
    path = tmp_path / "model.onnx"
    report = aimgraph.export_onnx(aim, path, memory="input")
    (memory,) = report.memories
    rows = aimgraph.plan(aim).memories[0].reads_rows
    assert (memory.kind, memory.rows) == ("input", "any" if rows else "one")
    session = MemorySession(path)
    assert close(session.run(x.numpy())[0], tensors(run(aim, x))[0])
    source = aim.get_parameter("aim.memory.source.value")
    for seed in (1, 2):
        with torch.no_grad():
            source.copy_(torch.randn(source.shape, generator=torch.Generator().manual_seed(seed)))
        given = session.run(x.numpy(), memories={"memory": source.detach().numpy()[None]})
        assert close(given[0], tensors(run(aim, x))[0])
    assert aimgraph.verify_onnx(path).ok


def test_a_row_for_each_sample_is_one_by_one(tmp_path: Path) -> None:
    aim, _ = made("residual")
    aimgraph.export_onnx(aim, tmp_path / "model.onnx", memory="input")
    session = MemorySession(tmp_path / "model.onnx")
    x, rows = torch.randn(5, 3, 8, 8), torch.randn(5, 64)
    for index in range(5):
        aim.add_memory_set(f"s{index}", share_reads=True)
        with torch.no_grad():
            aim.get_parameter(f"aim.sets.s{index}.memory.source.value").copy_(rows[index])
    with aim.using([f"s{index}" for index in range(5)]):
        wanted = aim(x)
    assert close(session.run(x.numpy(), memories={"memory": rows.numpy()})[0], wanted)
    for index in range(5):
        one = session.run(x[index : index + 1].numpy(), memories={"memory": rows[index : index + 1].numpy()})[0]
        assert close(one, wanted[index : index + 1])


STATES: dict[str, dict[str, Any]] = {
    "written": {},
    "gated": {"mode": "gated"},
    "pooled": {"pool": "batch"},
    "carried": {"carry": "state"},
    "carried in eval": {"carry": "state", "write_in_eval": True, "rate": 0.5},
    "carried and pooled": {"carry": "state", "pool": "batch", "rate": 0.5},
}


@pytest.mark.parametrize("option", mostly_slow(STATES, kept=["gated", "carried"]))
def test_a_memory_as_state(option: str, tmp_path: Path) -> None:
    base, x = build("residual")
    aim, x = made("residual", shape=(2, 2, 3), **updates_for(base, x), **STATES[option])
    path = tmp_path / "model.onnx"
    before = {key: value.clone() for key, value in aim.state_dict().items()}
    report = aimgraph.export_onnx(aim, path, memory="state")
    assert all(torch.equal(value, before[key]) for key, value in aim.state_dict().items())
    (memory,) = report.memories
    assert (memory.input, memory.output) == ("memory_in", "memory_out")
    assert memory.rows == {"written": "batch", "gated": "batch", "pooled": "one"}.get(option, "none")
    session = MemorySession(path)
    carry: Any = aim.get_submodule("aim.memory")._modules.get("carry")
    source = aim.get_submodule("aim.memory.source")
    firsts, last = [], np.empty(0)
    for _ in range(2):
        for step in range(3):
            sample = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            given = session.run(sample.numpy())[0]
            if carry is not None:
                carry.write_in_eval = True
                assert close(given, aim(sample))
                assert close(session.state["memory"], carry.state)
            elif step == 0:
                assert close(given, aim(sample))
            else:  # the memory starts where it ended
                with torch.no_grad():
                    rows = [aim_from(aim, source, torch.as_tensor(last[i % len(last)]), sample)[i] for i in range(2)]
                if memory.rows == "batch":
                    assert close(given, torch.stack(rows))
            last = session.state["memory"]
            firsts.append(given)
        session.reset()
        if carry is not None:
            carry.state.copy_(before["aim.memory.carry.state"])
    assert all(np.array_equal(one, other) for one, other in zip(firsts[:3], firsts[3:], strict=True))
    assert not np.array_equal(firsts[0], firsts[1])
    assert aimgraph.verify_onnx(path).ok


def aim_from(aim: nn.Module, source: nn.Module, value: Tensor, x: Tensor) -> Tensor:
    """What `aim` gives where the memory starts with `value`."""
    parameter = source.value
    assert isinstance(parameter, Tensor)
    old = parameter.clone()
    parameter.copy_(value)
    try:
        result: Tensor = aim(x)
    finally:
        parameter.copy_(old)
    return result


@pytest.mark.slow
def test_several_memories(tmp_path: Path) -> None:
    base, x = build("residual")
    configs = [
        aimgraph.AimConfig(name="a"),
        aimgraph.AimConfig(name="w", shape=(2, 2, 3), carry="state", **updates_for(base, x)),
        aimgraph.AimConfig(name="b", shape=(2, 2, 2)),
    ]
    aim = randomise(aimgraph.transform(base.eval(), x, config=configs)).eval()
    report = aimgraph.export_onnx(aim, tmp_path / "i.onnx", memory="input")
    assert [item.input for item in report.memories] == ["a", "b"]
    session = MemorySession(tmp_path / "i.onnx")
    assert [item.name for item in session.session.get_inputs()] == [*session.inputs, "a", "b"]
    other = {name: np.random.default_rng(0).normal(size=(1, session.memories[name]["values"])) for name in ("a", "b")}
    given = session.run(x.numpy(), memories=other)[0]
    with torch.no_grad():
        for name, value in other.items():
            aim.get_parameter(f"aim.{name}.source.value").copy_(torch.as_tensor(value[0]))
    assert close(given, aim(x))
    report = aimgraph.export_onnx(aim, tmp_path / "s.onnx", memory="state")
    assert [(item.input, item.output) for item in report.memories] == [("w_in", "w_out")]
    assert close(MemorySession(tmp_path / "s.onnx").run(x.numpy())[0], aim(x))


def test_constant_is_folded(tmp_path: Path) -> None:
    aim, x = made("residual")
    report = aimgraph.export_onnx(aim, tmp_path / "model.onnx")
    assert report.memory == "constant"
    inside = aimgraph.export_onnx(aim, tmp_path / "inside.onnx", memory="inside")
    assert inside.memory == "inside"
    for name in ("model", "inside"):
        assert close(MemorySession(tmp_path / f"{name}.onnx").run(x.numpy())[0], aim(x))
    base = aimgraph.export_onnx(aimgraph.strip(aim), tmp_path / "base.onnx", (x,), memory="none")
    assert report.operators["Conv"] == base.operators["Conv"]


def test_the_set_in_use_is_exported(tmp_path: Path) -> None:
    aim, x = made("residual")
    aim.add_memory_set("a")
    with torch.no_grad():
        for parameter in aimgraph.memory_parameters(aim, "a"):
            parameter.normal_(std=0.1)
    aim.use("a")
    for memory in ("constant", "inside"):
        aimgraph.export_onnx(aim, tmp_path / "model.onnx", memory=memory)
        assert close(MemorySession(tmp_path / "model.onnx").run(x.numpy())[0], aim(x))
    with aim.using(["a", "default"]), pytest.raises(ConfigError, match="every sample has a memory set of its own"):
        aimgraph.export_onnx(aim, tmp_path / "model.onnx")


@pytest.mark.slow
def test_values_as_input_need_sets_with_the_read_weights_of_the_file(tmp_path: Path) -> None:
    aim, x = made("residual")
    path = tmp_path / "model.onnx"
    aim.add_memory_set("shared", share_reads=True)
    aimgraph.export_onnx(aim, path, memory="input")
    aim.use("shared")
    aimgraph.export_onnx(aim, path, memory="input")
    session = MemorySession(path)
    for name in aim.memory_sets:
        prefix = "aim" if name == "default" else f"aim.sets.{name}"
        value = aim.get_parameter(f"{prefix}.memory.source.value").detach().numpy()[None]
        with aim.using(name):
            assert close(session.run(x.numpy(), memories={"memory": value})[0], aim(x))
    aim.add_memory_set("own")
    aim.add_memory_set("another", like="own")
    for name, others in (
        ("default", "'own', 'another'"),
        ("shared", "'own', 'another'"),
        ("own", "'default', 'shared', 'another'"),
    ):
        with aim.using(name), pytest.raises(ExportError, match=f"the values of {others} are trained with others"):
            aimgraph.export_onnx(aim, path, memory="input")
        aimgraph.export_onnx(aim, tmp_path / "constant.onnx")


def test_one_set_of_several_as_input(tmp_path: Path) -> None:
    """The way that the refusal names."""
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base.eval(), x)).eval()
    aim.add_memory_set("own")
    with torch.no_grad():
        for parameter in aimgraph.memory_parameters(aim, "own"):
            parameter.normal_(std=0.1)
    one = aimgraph.load(aimgraph.save(aim, tmp_path / "own", memory_set="own"), base)
    aimgraph.export_onnx(one, tmp_path / "model.onnx", memory="input")
    with aim.using("own"):
        assert close(MemorySession(tmp_path / "model.onnx").run(x.numpy())[0], aim(x))


def test_tasks_of_values_alone_are_fed_to_one_file(tmp_path: Path) -> None:
    base, x = build("residual")
    aim = aimgraph.freeze_reads(aimgraph.freeze_base(aimgraph.transform(base.eval(), x, start="zero_values"))).eval()
    aimgraph.export_onnx(aim, tmp_path / "model.onnx", memory="input")
    session = MemorySession(tmp_path / "model.onnx")
    assert close(session.run(x.numpy())[0], base(x))
    given = {}
    for seed in (1, 2):
        source = aim.get_parameter("aim.memory.source.value")
        with torch.no_grad():
            source.copy_(torch.randn(source.shape, generator=torch.Generator().manual_seed(seed)))
        (file,) = aimgraph.save(aim, tmp_path / str(seed), what="values").glob("*.safetensors")
        given[seed] = load_file(file)["aim.memory.source.value"][None]
        one = session.run(x.numpy(), memories={"memory": given[seed].numpy()})[0]
        assert close(one, aimgraph.load(tmp_path / str(seed), base).eval()(x))
        assert not close(one, base(x))
    rows = torch.cat([given[1 + row % 2] for row in range(x.shape[0])])
    aim.add_memory_set("a", share_reads=True)
    aimgraph.load_memory(aim, tmp_path / "1", memory_set="a")
    with aim.using(["a" if row % 2 == 0 else "default" for row in range(x.shape[0])]):
        assert close(session.run(x.numpy(), memories={"memory": rows.numpy()})[0], aim(x))


def weights(path: Path) -> int:
    """Bytes of the tensors in a file."""
    return sum(onnx.numpy_helper.to_array(item).nbytes for item in onnx.load(str(path)).graph.initializer)


@pytest.mark.parametrize("memory", ["constant", "input", "inside"])
def test_half_precision(memory: Any, tmp_path: Path) -> None:
    aim, x = made("residual")
    report = aimgraph.export_onnx(aim, tmp_path / "model.onnx", memory=memory, float16=True)
    assert 1e-6 < report.relative_difference < 1e-2
    full = aimgraph.export_onnx(aim, tmp_path / "full.onnx", memory=memory)
    assert weights(tmp_path / "model.onnx") < 0.6 * weights(tmp_path / "full.onnx")
    assert full.relative_difference < report.relative_difference
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert {item.type for item in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float16)"}
    (given, *_) = MemorySession(tmp_path / "model.onnx").run(x.numpy().astype(np.float16))
    assert given.dtype == np.float16
    assert close(given.astype(np.float32), aim(x), 1e-2)
    assert aim.head.weight.dtype == torch.float32
    assert aimgraph.verify_onnx(tmp_path / "model.onnx").ok


@pytest.mark.parametrize("memory", [None, "input", "inside"])
@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["residual", "strided", "conv1d", "conv3d", "functions", "transposed2d"], kept=["strided", "functions"]
    ),
)
def test_sizes_that_vary(name: str, memory: Any, tmp_path: Path) -> None:
    aim, x = made(name)
    if name in ("conv1d", "conv3d") and len(aimgraph.plan(aim).memories[0].reads) == 0:
        pytest.skip("reads nothing")
    report = aimgraph.export_onnx(aim, tmp_path / "model.onnx", memory=memory, dynamic_size=True)
    assert len(report.sizes) == 2
    session = MemorySession(tmp_path / "model.onnx")
    for extra in (0, 3, 8):
        other = torch.randn(3, x.shape[1], *(size + extra for size in x.shape[2:]))
        assert close(session.run(other.numpy())[0], tensors(aim(other))[0])


def test_sizes_that_can_not_vary(tmp_path: Path) -> None:
    aim, _ = made("position")
    with pytest.raises(ExportError, match="the model runs at no other size that was tried"):
        aimgraph.export_onnx(aim, tmp_path / "model.onnx", dynamic_size=True)
    base, x = build("residual")
    folded = aimgraph.fold(randomise(aimgraph.transform(base.eval(), x)))
    with pytest.raises(ExportError, match="bias maps are of one size"):
        aimgraph.export_onnx(folded, tmp_path / "model.onnx", dynamic_size=True)
    assert not list(tmp_path.iterdir())


def test_what_is_refused(tmp_path: Path) -> None:
    base, x = build("residual")
    path = tmp_path / "model.onnx"
    static = randomise(aimgraph.transform(base, x))
    written = randomise(aimgraph.transform(base, x, carry="state", write_in_eval=True, **updates_for(base, x)))
    concat = aimgraph.transform(base, x, lowering="concat")
    for module, memory, match in (
        (static, "state", "every memory of this model is without updates; export with memory='input'"),
        (written, "input", "every memory of this model has updates; export with memory='state'"),
        (written, "constant", r'would be lost: export with aimgraph\.export_onnx\(\.\.\., memory="state"\)'),
        (written, "inside", r'would be lost: export with aimgraph\.export_onnx\(\.\.\., memory="state"\)'),
        (concat, "input", "can't be exported in concat form"),
        (base, "input", "needs what aimgraph.transform gives, and this is a Residual"),
        (base, None, 'this Residual has no memory, and neither would the file: .* memory="none" to export the model'),
        (base, "constant", "this Residual has no memory"),
        (aimgraph.merge(without_reads(static)).model, None, "this Residual has no memory"),
        (static, "none", 'memory="none" is for a model without a memory, and this Residual has one'),
        (nn.Sequential(static), "none", "this Sequential has one"),
        (aimgraph.fold(static), "none", "this Residual has one"),
    ):
        with pytest.raises(ExportError, match=match):
            aimgraph.export_onnx(module, path, None if isinstance(module, aimgraph.AimModule) else x, memory=memory)
    with pytest.raises(
        ConfigError, match="memory='file': export_onnx takes one of constant, input, state, inside, none"
    ):
        aimgraph.export_onnx(static, path, memory="file")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def without_reads(aim: nn.Module) -> nn.Module:
    """A copy that reads nothing, so that it can be merged."""
    made = copy.deepcopy(aim)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if ".reads." in name:
                parameter.zero_()
    return made


@pytest.mark.slow
def test_what_has_no_memory_is_exported_if_that_is_said(tmp_path: Path) -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x).eval()
    for module in (base, aimgraph.strip(aim), aimgraph.merge(aim).model):
        report = aimgraph.export_onnx(module, tmp_path / "model.onnx", x, memory="none")
        assert report.memory == ""
        assert aimgraph.verify_onnx(tmp_path / "model.onnx")
    with aimgraph.disable_memory(aim):
        for memory in (None, "constant", "inside", "none"):
            assert aimgraph.export_onnx(aim, tmp_path / "model.onnx", memory=memory).memory == ""
    assert aimgraph.export_onnx(nn.Sequential(aimgraph.fold(aim)), tmp_path / "m.onnx", x).memory == "constant"


@pytest.mark.slow
def test_an_opset_that_is_not_written_is_refused(tmp_path: Path) -> None:
    aim, x = made("residual")
    for opset in (18, 20):
        assert aimgraph.export_onnx(aim, tmp_path / "model.onnx", opset=opset).opset == opset
    before = (tmp_path / "model.onnx").read_bytes()
    for opset in (13, 17, 99):
        with pytest.raises(ExportError, match=f"opset={opset} was asked for, and the exporter gave opset 18"):
            aimgraph.export_onnx(aim, tmp_path / "model.onnx", opset=opset)
    with pytest.raises(ExportError, match="opset=13 was asked for"):
        aimgraph.export_onnx(aimgraph.fold(aim), tmp_path / "other.onnx", x, opset=13)
    assert (tmp_path / "model.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_file_says_what_it_is(tmp_path: Path) -> None:
    aim, _ = made("residual")
    path = tmp_path / "model.onnx"
    aimgraph.export_onnx(aim, path, memory="input", opset=18)
    model = onnx.load(str(path))
    about = json.loads(next(item.value for item in model.metadata_props if item.key == "aimgraph"))
    assert about["aimgraph"] == aimgraph.__version__
    assert about["memory"] == "input"
    assert about["plan"] == json.loads(json.dumps(record_of(aim).plan.to_dict(), default=str))
    assert next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx")) == 18
    assert not [node.domain for node in model.graph.node if node.domain not in ("", "ai.onnx")]
    session = MemorySession(path)
    assert np.array_equal(session.state["memory"][0], aim.get_parameter("aim.memory.source.value").detach().numpy())


def test_what_the_session_refuses(tmp_path: Path) -> None:
    aim, x = made("residual")
    path = tmp_path / "model.onnx"
    aimgraph.export_onnx(aim, path, memory="input")
    session = MemorySession(path)
    with pytest.raises(ValueError, match="takes 1 inputs"):
        session.run()
    with pytest.raises(ValueError, match=r"there is no memory 'm'; the memories are \['memory'\]"):
        session.run(x.numpy(), memories={"m": x.numpy()})
    with pytest.raises(ValueError, match=r"memory 'memory' is \[3, 64\], and this batch takes \[1, 64\] or \[2, 64\]"):
        session.run(x.numpy(), memories={"memory": np.zeros((3, 64))})
    base, _ = build("residual")
    aim, x = made("residual", shape=(2, 2, 3), **updates_for(base, x))
    aimgraph.export_onnx(aim, path, memory="state")
    session = MemorySession(path)
    session.run(x.numpy())
    with pytest.raises(ValueError, match=r"is \[2, 12\], and this batch takes \[1, 12\]; reset\(\) it before"):
        session.run(x[:1].numpy())
    session.reset("memory")
    session.run(x[:1].numpy())
    torch.onnx.export(base.eval(), (x,), path, dynamo=True, verbose=False)
    with pytest.raises(ValueError, match="was not written by"):
        MemorySession(path)
    with pytest.raises(ExportError, match="was not written by"):
        aimgraph.verify_onnx(path)


def test_a_state_that_starts_where_samples_can_not_be_told_apart(tmp_path: Path) -> None:
    base, x = Attention().eval(), torch.randn(4, 7, 5)
    written: dict[str, Any] = {"updates": "stages"}
    aim = randomise(aimgraph.transform(base, x, **written)).eval()
    with pytest.raises(ExportError, match=r"attend\.linear_1 reads what memory 'memory' starts with, and its input"):
        aimgraph.export_onnx(aim, tmp_path / "model.onnx", memory="state")
    assert not any(tmp_path.iterdir())
    aimgraph.export_onnx(aim, tmp_path / "model.onnx", memory="inside")
    assert close(MemorySession(tmp_path / "model.onnx").run(x.numpy())[0], aim(x))
    without = randomise(aimgraph.transform(base, x, exclude=("attend.linear_1",), **written)).eval()
    aimgraph.export_onnx(without, tmp_path / "model.onnx", memory="state")
    assert close(MemorySession(tmp_path / "model.onnx").run(x.numpy())[0], without(x))


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    aim, _ = made("residual")
    path = tmp_path / "model.onnx"
    aimgraph.export_onnx(aim, path)
    assert aimgraph.verify_onnx(path).ok
    model = onnx.load(str(path))
    weight = next(item for item in model.graph.initializer if len(item.dims) == 4)
    values = onnx.numpy_helper.to_array(weight) * 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(path))
    report = aimgraph.verify_onnx(path)
    assert not report.ok
    assert not report
    assert [bool(check) for check in report.checks] == [check.passed for check in report.checks]
    assert [check.name for check in report.checks if not check.passed] == ["gives what torch gave"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ExportError, match=r"model\.onnx"):
        aimgraph.verify_onnx(path)
    with pytest.raises(ConfigError, match=r"none\.onnx: there is no such file"):
        aimgraph.verify_onnx(tmp_path / "none.onnx")


def test_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aimgraph.onnx import export as module

    monkeypatch.setattr(module, "_needs_external_data", lambda _: True)
    aim, x = made("residual")
    aimgraph.export_onnx(aim, tmp_path / "model.onnx", memory="input")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert close(MemorySession(tmp_path / "model.onnx").run(x.numpy())[0], aim(x))
    assert aimgraph.verify_onnx(tmp_path / "model.onnx").ok


def test_the_session_is_where_it_was() -> None:
    module = importlib.import_module("aimgraph.runtime.session")
    assert module is aimgraph.runtime.session
    assert module.MemorySession is aimgraph.MemorySession is MemorySession
