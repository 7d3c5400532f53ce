"""``aimgraph widen``, and ``transform --passes``."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from aimgraph.api.to_source import imported
from aimgraph.cli.main import cli
from aimgraph.errors import AimgraphError


def run(*args: str) -> Result:
    return CliRunner(catch_exceptions=False).invoke(cli, args)


def test_it_prints_groups_and_reasons() -> None:
    text = run("widen", "zoo/mlp", "--input", "2x784", "--parameters", "1.5").output
    assert "MLP: 669,706 parameters, 1,004,381 when widened (1.500 x)" in text
    assert "the model gives them out" in text
    assert "outputs in float64 are" in text


def test_widths_and_json() -> None:
    data = json.loads(
        run(
            "widen", "zoo/mlp", "--input", "2x784", "--widths", "layers.0=2.0", "--widths", "layers.2=8", "--json"
        ).output
    )
    assert [group["added"] for group in data["groups"]] == [512, 8, 0]
    assert data["widened"] > data["parameters"] == 669706


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--parameters", "many"), "'many': give a factor"),
        (("--widths", "layers.0"), "give PATTERN=FACTOR"),
        (("--widths", "fc1=2.0"), "'fc1' matches nothing; there are: layers.0, layers.2"),
        ((), "a budget for the whole"),
    ],
)
def test_what_makes_no_sense_is_refused(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(AimgraphError, match=message):
        run("widen", "zoo/mlp", "--input", "2x784", *options)


def test_a_sequence_of_passes_shows_each_step(tmp_path: Path) -> None:
    passes = "widen{parameters=1.5},memory{shape=(12,)}"
    result = run("transform", "zoo/mlp", "--input", "2x784", "--passes", passes, "--dump", str(tmp_path / "graphs"))
    assert result.exit_code == 0, result.output
    assert "widen-channels: 1.500 x the parameters" in result.output
    traced, widened, *rest = sorted(path.name for path in (tmp_path / "graphs").iterdir())
    assert (traced, widened) == ("00-traced.txt", "01-widen-channels.txt")
    assert rest[-1] == "09-remove-dead.txt"
    assert "[2, 512]" in (tmp_path / "graphs" / traced).read_text()
    assert "[2, 680]" in (tmp_path / "graphs" / widened).read_text()


def test_a_memory_is_said_once() -> None:
    with pytest.raises(AimgraphError, match=r"--passes says what the memory is, too: give \['shape'\]"):
        run("transform", "zoo/mlp", "--input", "2x784", "--passes", "memory", "--shape", "3")


def test_plain_source(tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    done = run("widen", "zoo/mlp", "--parameters", "1.5", "--source", str(folder))
    assert "MLP, 1 class in" in done.output
    assert imported(folder).load()(torch.zeros(2, 784)).shape == (2, 10)
    folder = tmp_path / "net"
    done = run("transform", "zoo/mlp", "--source", str(folder), "--json")
    assert json.loads(done.stdout)["source"]["compared"] == ["eval", "train"]
    assert imported(folder).load()(torch.zeros(2, 784)).shape == (2, 10)
    refused = run("transform", "zoo/mlp", "--source", "coordinate")
    assert "as a folder for plain PyTorch, write ./coordinate, or give --to-source coordinate" in refused.output
    folder = tmp_path / "both"
    run("transform", "zoo/mlp", "--source", "ones_conv", "--shape", "2x2x2", "--to-source", str(folder))
    assert "self.memory_source = OnesConvSource()" in (folder / "model.py").read_text()
