"""``aimgraph zoo check`` and ``list``, as a user calls them."""

import csv
import json
import warnings
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from aimgraph.cli.main import cli, main
from aimgraph.errors import ConfigError
from aimgraph.zoo_check.rows import PASSED, REFUSED, read_rows
from tests.cli.test_main import shell

GOOD = "tests.zoo_check.factories:small"
PLAIN = "tests.zoo_check.factories:plain"
HEADER = "name,inputs\n"
INPUTS = "2x3x8x8"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "good.csv").write_text(f"{HEADER}{GOOD},{INPUTS}\n")
    (tmp_path / "both.csv").write_text(f"{HEADER}{GOOD},{INPUTS}\n{PLAIN},{INPUTS}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["zoo", "check", *arguments])


def test_a_good_list_passes_and_leaves_its_results(folder: Path) -> None:
    result = check("--manifest", "good.csv", "--out", "o")
    assert result.exit_code == 0, result.output
    assert "1 models, 1 passed, 0 not as expected" in result.stdout
    (row,) = read_rows(folder / "o" / "results.csv").values()
    assert (row.name, row.level, row.status, row.rewritten, row.called) == (GOOD, "structure", PASSED, 2, 2)
    assert json.loads((folder / "o" / "results.json").read_text())["rows"][0]["name"] == GOOD
    assert len(ET.parse(folder / "o" / "junit.xml").getroot()) == 1


def test_a_model_that_does_not_pass_fails_until_it_is_expected(folder: Path) -> None:
    result = check("--manifest", "both.csv", "--update", "expected.csv")
    assert result.exit_code == 1
    assert f"NOT AS EXPECTED {PLAIN} (structure): not in the expected results; it is refused" in result.stdout
    result = check("--manifest", "both.csv", "--expected", "expected.csv")
    assert result.exit_code == 0, result.output
    assert "2 of 2 rows are there from an earlier run" in result.stderr
    text = (folder / "expected.csv").read_text()
    (folder / "expected.csv").write_text(text.replace(f"{PLAIN},structure,{REFUSED}", f"{PLAIN},structure,{PASSED}"))
    result = check("--manifest", "both.csv", "--expected", "expected.csv")
    assert result.exit_code == 1
    assert "status 'passed' -> 'refused'" in result.stdout


def test_an_unexpected_pass_and_a_model_that_is_not_expected_fail(folder: Path) -> None:
    check("--manifest", "both.csv", "--update", "expected.csv")
    lines = (folder / "expected.csv").read_text().splitlines(keepends=True)
    (folder / "expected.csv").write_text("".join(line for line in lines if GOOD not in line))
    result = check("--manifest", "both.csv", "--expected", "expected.csv")
    assert result.exit_code == 1
    assert f"{GOOD} (structure): not in the expected results; it is passed" in result.stdout
    (folder / "expected.csv").write_text("".join(lines).replace(",passed,", ",failed,"))
    assert check("--manifest", "both.csv", "--expected", "expected.csv").exit_code == 1


def test_an_update_of_a_part_keeps_the_rest(folder: Path) -> None:
    check("--manifest", "both.csv", "--update", "expected.csv")
    before = read_rows(folder / "expected.csv")
    check("--manifest", "both.csv", "--filter", GOOD, "--fresh", "--update", "expected.csv")
    after = read_rows(folder / "expected.csv")
    assert {key: row.facts() for key, row in after.items()} == {key: row.facts() for key, row in before.items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --source torchvision, timm or zoo, or --manifest FILE"),
        (["--manifest", "good.csv", "--filter", "resnet*"], "--filter resnet* leaves none of 1 models"),
        (["--manifest", "none.csv"], "does not exist"),
        (["--manifest", "good.csv", "--level", "all"], "is not one of"),
        (["--manifest", "good.csv", "--seconds", "0"], "is not in the range"),
        (["--manifest", "good.csv", "--expected", "good.csv"], "is no table of zoo results"),
    ],
)
def test_what_is_asked_wrongly_exits_with_2(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["aimgraph", "zoo", "check", *arguments])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_json_is_json_alone_even_if_a_model_prints(folder: Path) -> None:
    code = "import os\nfrom torch import nn\n\ndef chatty():\n    print('I print where results go')\n"
    code += "    os.write(1, b'and so do I\\n')\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())\n"
    (folder / "nets.py").write_text(code)
    (folder / "chatty.csv").write_text(f"{HEADER}nets:chatty,{INPUTS}\n")
    done = shell("zoo", "check", "--manifest", "chatty.csv", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert [(row["name"], row["status"]) for row in data["rows"]] == [("nets:chatty", PASSED)]
    assert data["differences"] == []


def test_fresh_runs_again_and_touches_nothing_else(folder: Path) -> None:
    (folder / "mine.txt").write_text("mine")
    check("--manifest", "good.csv", "--out", ".")
    assert "rows are there" in check("--manifest", "good.csv", "--out", ".").stderr
    assert "rows are there" not in check("--manifest", "good.csv", "--out", ".", "--fresh").stderr
    assert (folder / "mine.txt").read_text() == "mine"
    assert (folder / "good.csv").exists()


def test_a_level_of_its_own_comes_before_the_runs(folder: Path) -> None:
    (folder / "mixed.csv").write_text(f"name,small,level\n{GOOD},{INPUTS},numeric\n{GOOD},{INPUTS},\n")
    result = check("--manifest", "mixed.csv", "--json")
    assert [row["level"] for row in json.loads(result.stdout)["rows"]] == ["numeric", "structure"]


def test_a_library_is_listed_as_a_manifest(folder: Path) -> None:
    result = CliRunner().invoke(cli, ["zoo", "list", "--source", "zoo", "--out", "zoo.csv"])
    assert result.exit_code == 0
    with (folder / "zoo.csv").open(newline="") as file:
        assert "zoo/mlp" in {row["name"] for row in csv.DictReader(file)}
    for wrong in ([], ["--source", "zoo", "--ci"]):
        result = CliRunner().invoke(cli, ["zoo", "list", "--out", "x.csv", *wrong])
        assert result.exit_code != 0
        assert not (folder / "x.csv").exists()


def test_what_is_expected_has_to_be_in_the_list(folder: Path) -> None:
    check("--manifest", "both.csv", "--update", "expected.csv")
    result = check("--manifest", "good.csv", "--expected", "expected.csv")
    assert result.exit_code == 1
    assert f"NOT AS EXPECTED {PLAIN} (structure): expected to be refused; it is not in the list" in " ".join(
        result.stdout.split()
    )
    assert len(ET.parse("out/zoo/junit.xml").getroot().findall("testcase/failure")) == 1
    assert check("--manifest", "good.csv", "--expected", "expected.csv", "--filter", "*small").exit_code == 0
    assert check("--manifest", "good.csv", "--expected", "expected.csv", "--level", "numeric").exit_code == 1


def test_files_that_can_not_be_written_are_known_before_the_run(folder: Path) -> None:
    (folder / "notes.csv").write_text("these are no results\n1\n")
    (folder / "file").touch()
    for options in (["--update", "notes.csv"], ["--out", "file/below"], ["--update", "file/below.csv"]):
        result = check("--manifest", "good.csv", *options)
        assert isinstance(result.exception, ConfigError), options
        assert not (folder / "out" / "zoo" / "journal.jsonl").exists()
    assert (folder / "notes.csv").read_text().startswith("these are no results")
