"""Tables of results: what is written is read, and every change is seen."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from aimgraph.errors import ConfigError
from aimgraph.zoo_check.rows import (
    COLUMNS,
    FAILED,
    PASSED,
    REFUSED,
    Row,
    differences,
    read_rows,
    to_json,
    to_junit,
    write_rows,
)

GOOD = Row("timm/a", "structure", PASSED, rewritten=3, called=3, present=4, left="1 x never called", seconds=1.25)
BAD = Row("timm/b", "numeric", REFUSED, reason='a "quoted", reason; with commas\r\nand lines', seconds=0.5)


def by_key(*rows: Row) -> dict[tuple[str, str], Row]:
    return {(row.name, row.level): row for row in rows}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    write_rows(path, [GOOD, BAD])
    assert read_rows(path) == by_key(GOOD, BAD)
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert [item.name for item in path.parent.iterdir()] == ["rows.csv"]


def test_the_order_does_not_depend_on_who_came_first(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.csv", [GOOD, BAD])
    write_rows(tmp_path / "b.csv", [BAD, GOOD])
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


@pytest.mark.parametrize(
    "text",
    [
        "name,status\na,passed\n",
        "name,level,status\na,structure,pased\n",
        "name,level,status,called\na,structure,passed,many\n",
        "name,level,status\na\n",
    ],
)
def test_another_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is no table of zoo results"):
        read_rows(path)


@pytest.mark.parametrize("name", COLUMNS[2:-1])
def test_every_compared_column_counts(name: str) -> None:
    changed = replace(GOOD, **{name: {"status": FAILED, "left": "", "reason": "new"}.get(name, 99)})
    (found,) = differences([changed], by_key(GOOD), strict=True)
    assert f"{name} " in str(found)
    assert " -> " in str(found)


def test_the_time_does_not_count() -> None:
    assert differences([replace(GOOD, seconds=99)], by_key(GOOD), strict=True) == []


def test_an_unexpected_pass_is_a_difference() -> None:
    (found,) = differences([replace(BAD, status=PASSED, reason="")], by_key(BAD), strict=True)
    assert "status 'refused' -> 'passed'" in str(found)


def test_only_rows_that_ran_are_compared() -> None:
    assert differences([GOOD], by_key(GOOD, BAD), strict=True) == []


def test_a_model_that_nobody_knows_has_to_pass_at_least() -> None:
    assert differences([GOOD], {}, strict=False) == []
    for row, strict in ((BAD, False), (BAD, True), (GOOD, True)):
        (found,) = differences([row], {}, strict=strict)
        assert f"not in the expected results; it is {row.status}" in str(found)


def test_json_has_rows_and_differences() -> None:
    data = json.loads(to_json([GOOD, BAD], differences([GOOD, BAD], by_key(GOOD), strict=True)))
    assert [row["name"] for row in data["rows"]] == ["timm/a", "timm/b"]
    assert len(data["differences"]) == 1
    assert "timm/b" in data["differences"][0]


def test_junit_is_xml_whatever_a_reason_holds() -> None:
    known, new = replace(BAD, name="timm/known"), replace(BAD, reason="\x1b[31m<broken> & \x00\ud800 text")
    rows = [GOOD, known, new]
    suite = ET.fromstring(to_junit(rows, differences(rows, by_key(GOOD, known), strict=True)))
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    passed, skipped, failed = suite
    assert list(passed) == []
    assert [child.tag for child in skipped] == ["skipped"]
    assert [child.tag for child in failed] == ["failure"]
    assert "?[31m<broken> & ?? text" in str(failed[0].get("message"))
