"""Rows of a zoo check: one model at one level. Read, written and compared as CSV, JSON and JUnit."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from aimgraph.errors import ConfigError

STATUSES = PASSED, REFUSED, FAILED, CRASHED, TIMEOUT, BASE = "passed", "refused", "failed", "crashed", "timeout", "base"
"""What became of a model: as claimed; refused with one of aimgraph's errors; different from its claim;
dead, or an error that is nobody's message; over its time; or its base alone does not get that far."""


@dataclass(frozen=True)
class Row:
    """One model at one level.

    Attributes:
        name: The model.
        level: ``structure``, ``numeric``, ``onnx`` or ``widen``.
        status: `PASSED`, `REFUSED`, `FAILED`, `CRASHED`, `TIMEOUT` or `BASE`.
        rewritten: Layers and functions that the base calls and that read in the result; channel groups that grew.
        called: Layers and functions that the base calls; channel groups that it does not give out.
        present: Convolutions and linear layers in the base.
        fallback: Of the rewritten ones, those inside a module that could not be traced.
        left: Layers that exist and do not read, or channel groups that can't grow: how many for which reason.
        reason: Why the status is not `PASSED`; of a row that passed, which layers are called and do not read, and what
            could not be compared; of a widened one, how many times the parameters.
        seconds: Time of the transform; not compared.
    """

    name: str
    level: str
    status: str
    rewritten: int = 0
    called: int = 0
    present: int = 0
    fallback: int = 0
    left: str = ""
    reason: str = ""
    seconds: float = 0.0

    def facts(self) -> tuple[Any, ...]:
        """What a comparison looks at."""
        return tuple(getattr(self, name) for name in COLUMNS[:-1])


_TYPES: dict[str, Any] = {item.name: item.type for item in fields(Row)}


COLUMNS = tuple(_TYPES)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows` as CSV, ordered by level and name; the file is replaced as a whole."""
    ordered = sorted(rows, key=lambda item: (item.level, item.name))
    write_table(path, COLUMNS, [asdict(row) | {"seconds": f"{row.seconds:.2f}"} for row in ordered])


def write_table(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write a CSV; the file is replaced as a whole."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole, so that an interruption leaves the old one."""
    draft = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    draft.write_text(text, encoding="utf-8", newline="\n")
    draft.replace(path)


def read_rows(path: Path) -> dict[tuple[str, str], Row]:
    """(name, level) -> row, as `write_rows` wrote them.

    Raises:
        ConfigError: The file is not such a table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [_row(data) for data in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, TypeError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"{path} is no table of zoo results: {error}; its columns are {', '.join(COLUMNS)}"
        ) from error
    return {(row.name, row.level): row for row in rows}


def _row(data: dict[str, str | None]) -> Row:
    known = {name: data[name] or "" for name in COLUMNS if name in data}
    if known.get("status") not in STATUSES:
        raise ValueError(f"{known.get('name')} has the status {known.get('status')!r}")
    return Row(**{name: _TYPES[name](text or _TYPES[name]()) for name, text in known.items()})


@dataclass(frozen=True)
class Difference:
    """A row that is not as expected.

    Attributes:
        row: What was found, or what was expected and is not there.
        expected: What was expected; None for a model that the file does not know.
        missing: Whether it was expected and is not there.
    """

    row: Row
    expected: Row | None
    missing: bool = False

    def __str__(self) -> str:
        """One line that says what changed."""
        if self.missing:
            return f"{self.row.name} ({self.row.level}): expected to be {self.row.status}; it is not in the list"
        if self.expected is None:
            reason = f": {self.row.reason}" if self.row.reason else ""
            return f"{self.row.name} ({self.row.level}): not in the expected results; it is {self.row.status}{reason}"
        pairs = zip(COLUMNS, self.expected.facts(), self.row.facts(), strict=False)
        changes = [f"{name} {old!r} -> {new!r}" for name, old, new in pairs if old != new]
        return f"{self.row.name} ({self.row.level}): {'; '.join(changes)}"


def differences(
    rows: Iterable[Row], expected: dict[tuple[str, str], Row], *, strict: bool, whole: bool = False
) -> list[Difference]:
    """The rows that differ from what is expected, an unexpected pass included.

    Args:
        rows: What was found.
        expected: By name and level.
        strict: Every row has to be expected; otherwise one that is not has to have passed.
        whole: What is expected at a level that was run, and not found, is a difference, too.
    """
    rows, found = list(rows), []
    if whole:
        there, levels = {(row.name, row.level) for row in rows}, {row.level for row in rows}
        lost = [row for key, row in expected.items() if key not in there and row.level in levels]
        found = [Difference(row, row, missing=True) for row in lost]
    for row in rows:
        known = expected.get((row.name, row.level))
        wrong = known.facts() != row.facts() if known else strict or row.status != PASSED
        if wrong:
            found.append(Difference(row, known))
    return found


def write_results(folder: Path, rows: list[Row], unexpected: list[Difference]) -> None:
    """Rows as CSV, JSON and JUnit in one folder."""
    write_rows(folder / "results.csv", rows)
    write_text(folder / "results.json", to_json(rows, unexpected))
    write_text(folder / "junit.xml", to_junit(rows, unexpected))


def to_json(rows: Iterable[Row], unexpected: list[Difference]) -> str:
    """Rows and differences for machines."""
    data = {"rows": [asdict(row) for row in rows], "differences": [str(item) for item in unexpected]}
    return json.dumps(data, indent=1)


def to_junit(rows: list[Row], unexpected: list[Difference]) -> str:
    """Rows as test cases; a case fails where the row is not as expected."""
    wrong = {(item.row.name, item.row.level): str(item) for item in unexpected}
    rows = rows + [item.row for item in unexpected if item.missing]
    suite = ET.Element("testsuite", name="aimgraph zoo check", tests=str(len(rows)), failures=str(len(wrong)))
    for row in rows:
        case = ET.SubElement(suite, "testcase", classname=row.level, name=row.name, time=f"{row.seconds:.2f}")
        if (row.name, row.level) in wrong:
            ET.SubElement(case, "failure", message=_printable(wrong[row.name, row.level]))
        elif row.status != PASSED:
            ET.SubElement(case, "skipped", message=_printable(f"{row.status}: {row.reason}"))
    return ET.tostring(suite, encoding="unicode")


def _printable(text: str) -> str:
    """Without the characters that XML has no form for: a terminal's colours and the like."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
