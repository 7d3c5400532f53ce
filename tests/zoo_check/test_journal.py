"""The journal: an interrupted run goes on, and only with rows that still hold."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from aimgraph.errors import ConfigError
from aimgraph.units import code
from aimgraph.units.runner import Limits
from aimgraph.zoo_check import journal as module
from aimgraph.zoo_check.journal import Journal
from aimgraph.zoo_check.manifest import Entry, Task
from aimgraph.zoo_check.rows import CRASHED, FAILED, PASSED, TIMEOUT, Row

LIMITS = Limits(60, 4)
A: Task = (Entry("zoo/a", inputs="2x3"), "structure")
B: Task = (Entry("zoo/b"), "structure")
ROWS = [Row("zoo/a", "structure", PASSED, called=2), Row("zoo/b", "structure", FAILED, reason="\u00e4")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "journal.jsonl"
    journal = Journal(path, LIMITS)
    for task, row in zip((A, B), ROWS, strict=True):
        journal.add(task, row)
    return path


def test_rows_are_there_for_the_next_run(path: Path) -> None:
    journal = Journal(path, LIMITS)
    assert [journal.known(A), journal.known(B)] == ROWS


def test_a_line_that_was_cut_off_costs_its_row_alone(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])
    journal = Journal(path, LIMITS)
    assert [journal.known(A), journal.known(B)] == [ROWS[0], None]
    journal.add(B, ROWS[1])
    assert [Journal(path, LIMITS).known(task) for task in (A, B)] == ROWS


def test_another_entry_or_level_is_another_row(path: Path) -> None:
    journal = Journal(path, LIMITS)
    assert journal.known((replace(A[0], inputs="2x4"), "structure")) is None
    assert journal.known((A[0], "numeric")) is None


@pytest.mark.parametrize("name", ["code_digest", "versions"])
def test_rows_of_other_code_are_not_taken(path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    other: object = ("0", "0") if name == "versions" else "0"
    monkeypatch.setattr(module, name, lambda: other)
    assert Journal(path, LIMITS).known(A) is None


def test_the_code_is_all_of_ours_links_included() -> None:
    root = Path(code.__file__).parent.parent
    names = {file.relative_to(root).as_posix() for file in code._sources(root)}
    assert {"api/transform.py", "passes/find_sites.py", "models_zoo/loader.py", "units/journal.py"} <= names


def test_rows_of_ones_own_changed_model_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own: Task = (Entry("mynets.deep:net"), "structure")
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets" / "deep.py").write_text("net = 1")
    (tmp_path / "mynets" / "__init__.py").write_text("")
    Journal(tmp_path / "j", LIMITS).add(own, ROWS[0])
    assert Journal(tmp_path / "j", LIMITS).known(own) == ROWS[0]
    (tmp_path / "mynets" / "deep.py").write_text("net = 2")
    assert Journal(tmp_path / "j", LIMITS).known(own) is None


@pytest.mark.parametrize(("status", "taken"), [(PASSED, True), (FAILED, True), (TIMEOUT, False), (CRASHED, False)])
def test_other_limits_may_change_how_a_process_ended(tmp_path: Path, status: str, taken: bool) -> None:
    row = Row("zoo/a", "structure", status)
    Journal(tmp_path / "j", LIMITS).add(A, row)
    assert Journal(tmp_path / "j", LIMITS).known(A) == row
    assert Journal(tmp_path / "j", Limits(61, 4)).known(A) == (row if taken else None)


def test_a_fresh_start_removes_the_journal_and_nothing_else(path: Path) -> None:
    (path.parent / "notes.txt").write_text("mine")
    assert Journal(path, LIMITS, fresh=True).known(A) is None
    assert [item.name for item in path.parent.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("text", ["hello\n", "[1]\n", '{"key": "x"}\n', json.dumps({"key": "x", "row": {}}) + "\n"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, text: str, fresh: bool) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no journal of a zoo check"):
        Journal(path, LIMITS, fresh=fresh)
    assert path.read_text() == text
