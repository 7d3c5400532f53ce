"""What is done at present, where nobody watches a terminal, and how long a benchmark will take."""

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from aimgraph.cli import progress as shown
from aimgraph.cli.main import cli
from aimgraph.cli.progress import Estimate, duration, progress

MODULE = """
import time
from torch import nn

def slow():
    time.sleep(0.5)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
"""


def test_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shown, "SECONDS", 0.05)
    with progress("loading") as told:
        time.sleep(0.2)
        told.step("measuring", 2, 5)
        time.sleep(0.2)
        told.say("a line that stays")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("aimgraph: loading: for 0 s, ")
    assert any(line.startswith("aimgraph: measuring, 2 of 5: for 0 s, ") for line in lines)
    assert lines[-1] == "aimgraph: a line that stays"
    time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_what_is_done_soon_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("loading"):
        pass
    seen = capsys.readouterr()
    assert (seen.out, seen.err) == ("", "")


def test_a_command_says_what_it_does_and_json_stays_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slowly.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(shown, "SECONDS", 0.1)
    result = CliRunner().invoke(cli, ["plan", "slowly:slow", "--input", "2x3", "--json"])
    assert result.exit_code == 0, result.output
    assert "aimgraph: loading slowly:slow: for 0 s, " in result.stderr
    assert json.loads(result.stdout)["totals"]["sites_read"] == 2


@pytest.mark.parametrize(("pieces", "first"), [(1, 2), (2, 2), (4, 4)])
def test_the_first_round_tells_how_long_the_others_take(
    pieces: int, first: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(shown, "monotonic", lambda: now[0])
    rounds, total = 10, pieces * 11
    with progress("building") as told:
        estimate = Estimate(told, rounds)
        estimate("building the forms", 0, 1)
        estimate("counting", 1, 3)
        assert capsys.readouterr().err == ""
        for done in range(1, total + 1):
            now[0] += 20.0
            estimate("training", done, total)
            said = capsys.readouterr().err
            left = (total - first) * 20.0
            expected = f"aimgraph: training: 10 rounds of {pieces} forms, about {duration(left)}\n"
            assert said == (expected if done == first else "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (90.0, "90 s"), (150.0, "2 min"), (7100.0, "118 min"), (9000.0, "2 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
