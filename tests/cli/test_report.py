"""aimgraph report."""

import json
from pathlib import Path

import pytest

import aimgraph
from tests.cli.test_main import call, folder

__all__ = ["folder"]


def test_a_model_becomes_a_page(folder: Path) -> None:
    done = call("report", "usernet:net", "--input", "2x3x8x8", "--shape", "2x2x3", "--out", "deep/plan.html")
    assert done.exit_code == 0, done.output
    text = (folder / "deep" / "plan.html").read_text(encoding="utf-8")
    assert "12 values" in text
    assert "y = Conv2d(x; Wx, b) + Conv2d(m; Wm)" in text


def test_a_checkpoint_alone_or_with_its_model(folder: Path) -> None:
    assert call("transform", "usernet:net", "--input", "2x3x8x8", "--checkpoint", "saved").exit_code == 0
    alone = call("report", "saved", "--out", "alone.html")
    assert alone.exit_code == 0, alone.output
    assert "read without its base" in Path("alone.html").read_text(encoding="utf-8")
    both = call("report", "usernet:net", "--checkpoint", "saved", "--out", "both.html", "--json")
    assert both.exit_code == 0, both.output
    assert json.loads(both.stdout)["path"] == "both.html"
    text = Path("both.html").read_text(encoding="utf-8")
    assert "read without its base" not in text
    assert "What the memory holds" in text


def test_options_of_a_memory_contradict_a_checkpoint(folder: Path) -> None:
    assert call("transform", "usernet:net", "--input", "2x3x8x8", "--checkpoint", "saved").exit_code == 0
    for what in (("saved",), ("usernet:net", "--checkpoint", "saved")):
        done = call("report", *what, "--shape", "4", "--out", "plan.html")
        with pytest.raises(aimgraph.ConfigError, match="leave \\['shape'\\] out"):
            raise done.exception or AssertionError(done.output)
    assert not Path("plan.html").exists()
