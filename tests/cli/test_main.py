"""The command line, as a user calls it."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from aimgraph.cli.main import cli, main
from aimgraph.onnx.session import MemorySession

MODULE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=4),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def plain():
    return nn.ReLU()

def raises():
    raise OSError("no such weights")

def small():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 30 * 30, 2))

class Queue(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        if x.shape[0] not in (3, 9):
            raise ValueError("three or nine samples")
        return self.conv(x)

def queue():
    return Queue()

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "usernet.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=True)


def shell(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """The real process, with its exit code and streams."""
    return subprocess.run(
        [sys.executable, "-m", "aimgraph", *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_plan_prints_a_table(folder: Path) -> None:
    result = call("plan", "usernet:net", "--input", "2x3x16x16", "--updates", "stages")
    assert result.exit_code == 0, result.output
    for word in ("16x16", "Conv2d", "update 1", "sites read / called / layers present: 3 / 3 / 3"):
        assert word in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "MFLOP" not in result.stdout
    more = call("plan", "usernet:net", "--input", "2x3x16x16", "--sites", "0", "--costs", "--all").stdout
    assert "MFLOP" in more
    assert "3 (Conv2d): not chosen" in more


def test_a_memory_above_its_budget_is_told(folder: Path) -> None:
    done = shell("verify", "usernet:net", "--input", "2x3x16x16", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("above the budget of 1.26%; give shape=") == 1


def test_plan_json_is_json_alone(folder: Path) -> None:
    done = shell("plan", "usernet:net", "--json", cwd=folder)
    assert done.returncode == 0
    data = json.loads(done.stdout)
    assert data["totals"]["sites_read"] == 3
    assert "assuming one input of shape [1, 3, 224, 224]" in done.stderr


def test_sizes_that_were_tried_leave_no_noise(folder: Path) -> None:
    done = shell("plan", "usernet:small", cwd=folder)
    assert done.returncode == 0
    assert done.stderr == "aimgraph: no example_inputs given: assuming one input of shape [1, 3, 32, 32]\n"


def test_transform_verifies_dumps_and_saves(folder: Path) -> None:
    result = call(
        "transform", "usernet:net", "--input", "2x3x16x16", "--dump", "graphs", "--save", "out/w.safetensors", "--code"
    )
    assert result.exit_code == 0, result.output
    assert "bit-identical" in result.stdout
    assert "def forward(self, input)" in result.stdout
    assert len(list((folder / "graphs").iterdir())) == 9
    state = load_file(str(folder / "out" / "w.safetensors"))
    assert "aim.memory.source.value" in state
    assert "3.weight" in state
    assert [p.name for p in (folder / "out").iterdir()] == ["w.safetensors"]


def test_verify(folder: Path) -> None:
    result = call("verify", "usernet:net", "--input", "2x3x16x16", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["ok"] is True


def test_export_with_weights(folder: Path) -> None:
    base = ("usernet:net", "--input", "2x3x16x16")
    assert call("transform", *base, "--start", "drawn", "--save", "w.safetensors").exit_code == 0
    result = call("export", *base, "--onnx", "m.onnx", "--lowering", "concat", "--weights", "w.safetensors")
    assert result.exit_code == 0, result.output
    assert "Concat" in result.stdout
    assert "onnxruntime against torch at batch sizes [1, 3]" in result.stdout
    assert (folder / "m.onnx").stat().st_size > 1000
    folded = call("export", *base, "--onnx", "f.onnx", "--weights", "w.safetensors", "--fuse-batchnorm")
    assert folded.exit_code == 0, folded.output
    assert "Conv" in folded.stdout
    assert "Pad" not in folded.stdout


def test_two_batch_sizes_are_given(folder: Path) -> None:
    model = ("usernet:queue", "--input", "3x3x8x8", "--example-batches")
    planned = call("plan", *model, "3,9", "--json")
    assert planned.exit_code == 0, planned.output
    assert [read["site"] for read in json.loads(planned.stdout)["memories"][0]["reads"]] == ["conv"]
    assert "example_batches" in str(call("plan", *model[:-1]).exception)
    for wrong in ("3", "3,x", "3,9,12"):
        assert "give two batch sizes joined by a comma" in str(call("plan", *model, wrong).exception)
    assert call("transform", *model, "3,9").exit_code == 0


def test_outputs_are_named(folder: Path) -> None:
    model = ("export", "usernet:net", "--input", "2x3x16x16", "--onnx", "n.onnx")
    assert call(*model, "--output-names", "logits").exit_code == 0
    assert MemorySession("n.onnx").outputs == ("logits",)
    assert "the model has 1 outputs" in str(call(*model, "--output-names", "logits,more").exception)
    assert MemorySession("n.onnx").outputs == ("logits",)


def test_a_checkpoint_is_saved_and_exported(folder: Path) -> None:
    model = ("usernet:net", "--input", "2x3x16x16")
    made = call("transform", *model, "--shape", "2x2x3", "--checkpoint", "notes")
    assert made.exit_code == 0, made.output
    exported = call("export", *model, "--onnx", "c.onnx", "--checkpoint", "notes", "--fold")
    assert exported.exit_code == 0, exported.output
    other = shell("export", "zoo/mlp", "--onnx", "d.onnx", "--checkpoint", "notes", cwd=folder)
    assert other.returncode == 2
    assert "CheckpointError: notes was made with another base" in other.stderr


def test_a_checkpoint_of_values_alone(folder: Path) -> None:
    model = ("usernet:net", "--input", "2x3x16x16", "--shape", "2x2x3")
    made = call("transform", *model, "--start", "zero_values", "--checkpoint", "few", "--what", "values")
    assert made.exit_code == 0, made.output
    (file,) = (folder / "few").glob("*.safetensors")
    assert sorted(load_file(str(file))) == ["aim.memory.source.value", "scales.memory"]
    exported = call("export", *model[:3], "--onnx", "v.onnx", "--checkpoint", "few")
    assert exported.exit_code == 0, exported.output
    assert "give --checkpoint FOLDER, too" in str(call("transform", *model, "--what", "values").exception)


def test_options_that_say_what_another_says_are_taken_with_a_warning(folder: Path) -> None:
    model = ("usernet:net", "--input", "2x3x16x16")
    saved = call("transform", *model, "--save", "w.safetensors")
    assert saved.exit_code == 0, saved.output
    assert "aimgraph: --save: give --checkpoint FOLDER instead\n" in saved.stderr
    assert "--save" not in saved.stdout
    exported = call("export", *model, "--onnx", "a.onnx", "--weights", "w.safetensors", "--fold", "--json")
    assert exported.exit_code == 0, exported.output
    assert json.loads(exported.stdout)["memory"] == "constant"
    for line in ("--weights: give --checkpoint FOLDER instead", "--fold: give --memory constant instead"):
        assert f"aimgraph: {line}\n" in exported.stderr
    assert "instead" not in call("export", *model, "--onnx", "b.onnx", "--memory", "constant").stderr


@pytest.mark.parametrize(("command", "options"), [("transform", ("--save",)), ("export", ("--fold", "--weights"))])
def test_options_that_say_what_another_says_are_in_no_help(command: str, options: tuple[str, ...]) -> None:
    shown = call(command, "--help").stdout
    assert "--checkpoint" in shown
    assert not [option for option in options if f"{option} " in shown]


@pytest.mark.parametrize("damage", ["garbage", "other model"])
def test_weights_that_do_not_fit(damage: str, folder: Path) -> None:
    if damage == "garbage":
        (folder / "w.safetensors").write_bytes(b"no such thing")
    else:
        assert call("transform", "zoo/mlp", "--save", "w.safetensors").exit_code == 0
    base = ("usernet:net", "--input", "2x3x16x16")
    done = shell("export", *base, "--onnx", "m.onnx", "--weights", "w.safetensors", cwd=folder)
    assert done.returncode == 2
    assert "CheckpointError: w.safetensors: " in done.stderr
    assert not (folder / "m.onnx").exists()


def test_draw(folder: Path) -> None:
    assert call("draw", "usernet:net", "--input", "2x3x16x16", "--out", "plan.png").exit_code == 0
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_config_file_and_presets(folder: Path) -> None:
    (folder / "c.json").write_text(
        json.dumps([{"name": "a", "shape": [2, 2, 3]}, {"name": "b", "shape": [4], "sites": ["6"]}])
    )
    result = call("plan", "usernet:net", "--input", "2x3x16x16", "--config", "c.json", "--json")
    assert [m["config"]["name"] for m in json.loads(result.stdout)["memories"]] == ["a", "b"]
    result = call("plan", "usernet:net", "--input", "2x3x16x16", "--preset", "article", "--json")
    assert json.loads(result.stdout)["memories"][0]["config"]["carry"] == "state"
    result = call("plan", "zoo/mlp", "--shape", "5", "--json")
    assert json.loads(result.stdout)["memories"][0]["shape"] == [5]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("plan",), 2, "Missing argument 'MODEL'"),
        (("plan", "resnet50"), 2, "give zoo/NAME, torchvision/NAME, timm/NAME, FILE.onnx or package"),
        (("plan", "zoo/vgg61"), 2, "zoo has no model 'vgg61'; near misses: vgg16"),
        (("plan", "nowhere:net"), 2, "No module named 'nowhere'"),
        (("plan", "usernet:nat"), 2, "usernet has no 'nat'; did you mean net"),
        (("plan", "usernet:raises"), 2, "usernet:raises() raised OSError: no such weights"),
        (("plan", "usernet:number"), 2, "usernet:number gives a int, not a torch.nn.Module"),
        (("plan", "usernet:net", "--input", "3x"), 2, "--input='3x': give positive sizes joined by x"),
        (("plan", "usernet:net", "--shape", "0"), 2, "--shape='0'"),
        (("plan", "usernet:net", "--input", "2x4x16x16"), 2, "does not run on inputs of shapes [[2, 4, 16, 16]]"),
        (("plan", "usernet:net", "--carry", "state"), 2, "carry='state' needs updates"),
        (("plan", "usernet:net", "--config", "usernet.py"), 2, "usernet.py: Expecting value"),
        (("plan", "usernet:net", "--input", "2x3x16x16", "--sites", "9"), 3, "'9' matches nothing"),
        (("plan", "usernet:plain", "--input", "2x3"), 3, "no convolution or linear layer"),
    ],
)
def test_exit_codes_and_messages(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # it sets its own
    monkeypatch.setattr(sys, "argv", ["aimgraph", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    seen = capsys.readouterr()
    assert ended.value.code == code, seen.err
    assert message in seen.err
    assert "Traceback" not in seen.err
    assert not seen.out


def test_a_process_ends_with_that_code(folder: Path) -> None:
    done = shell("plan", "usernet:nat", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "usernet has no 'nat'; did you mean net" in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_help_says_that_user_code_runs(folder: Path) -> None:
    for command in ((), ("plan",), ("transform",), ("export",), ("verify",), ("draw",)):
        result = call(*command, "--help")
        assert result.exit_code == 0
        assert "imports and calls your own code" in " ".join(result.stdout.split())
        assert "Exit codes" in result.stdout


def test_bench_measures_every_form(folder: Path) -> None:
    result = call("bench", "usernet:net", "--input", "2x3x16x16", "--rounds", "1", "--out", "bench")
    assert result.exit_code == 0, result.output
    for word in ("split / floor", "fused folded / fused floor", "saved, MB", "3 sites"):
        assert word in result.stdout
    assert json.loads((folder / "bench/bench.json").read_text())["forms"].keys() >= {"base", "floor", "folded"}
    assert (folder / "bench/bench.png").stat().st_size > 10_000
    one = call("bench", "usernet:net", "--input", "2x3x16x16", "--rounds", "1", "--form", "split", "--json")
    assert list(json.loads(one.stdout)["forms"]) == ["split"]


def test_bench_says_what_it_does_not_know(folder: Path) -> None:
    result = call("bench", "usernet:net", "--form", "narrow")
    assert (result.exit_code, "there are base, floor" in str(result.exception)) == (1, True)


@pytest.mark.slow
def test_a_file_that_serves_many_memories_is_exported_and_verified(folder: Path) -> None:
    file = str(folder / "mlp.onnx")
    done = call("export", "zoo/mlp", "--onnx", file, "--memory", "input", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["memory"], report["memories"][0]["input"]) == ("input", "memory")
    done = call("verify", file)
    assert done.exit_code == 0, done.output
    for word in ("memory: input, 8 values", "ok  gives what torch gave", "ok  a row for each sample"):
        assert word in done.stdout
    found = json.loads(call("verify", file, "--json").stdout)
    assert found["ok"]
    Path(file).write_bytes(b"nothing")
    done = shell("verify", file, cwd=folder)
    assert (done.returncode, "ExportError" in done.stderr) == (4, True)
    done = shell("export", "zoo/mlp", "--onnx", file, "--memory", "state", cwd=folder)
    assert (done.returncode, "export with memory='input'" in done.stderr) == (4, True)
    done = shell("export", "zoo/mlp", "--onnx", file, "--memory", "input", "--fuse-batchnorm", cwd=folder)
    assert (done.returncode, "--memory input does not: give one of them" in done.stderr) == (2, True)


def test_where_a_memory_starts(folder: Path) -> None:
    def planned(*options: str) -> str:
        result = call("plan", "usernet:net", "--input", "2x3x16x16", "--shape", "2x2x2", *options)
        assert result.exit_code == 0, result.output
        return " ".join(result.stdout.split())

    assert "start zero_values: values are zero, read weights drawn at 0.5 x" in planned(
        "--start", "zero_values", "--start-scale", "0.5"
    )
    assert "values are coordinates and fixed" in planned("--source", "coordinates", "--fixed")
    assert "values drawn with a standard deviation of 0.02" in planned("--init", "zero")
    result = call("plan", "usernet:net", "--input", "2x3x16x16", "--init", "default")
    assert "--init: give --start zero_reads or --start drawn instead" in result.stderr
    assert "start drawn: read weights drawn as by their layers" in result.stdout
