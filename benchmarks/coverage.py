"""The table in docs/coverage.md: what became of every model of torchvision and timm, from the committed results.

Run as ``python benchmarks/coverage.py`` (or ``make coverage``) after a ``zoo check --update``; it runs no model.
"""

import re
from collections import Counter
from pathlib import Path

from aimgraph.zoo_check.rows import BASE, PASSED, REFUSED, Row, read_rows

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "coverage.md"
MARKS = re.compile(r"(<!-- table: make coverage -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)
SOURCES = ("torchvision", "timm")


def table() -> str:
    """One line per library and level."""
    lines = [
        "| models | level | passed | not passed | layers read / called, groups wider / all | of them inside one call |",
        "|---|---|---:|---|---:|---:|",
    ]
    for source in SOURCES:
        rows = read_rows(ROOT / "models_zoo" / "expected" / f"{source}.csv").values()
        for level in ("structure", "numeric", "onnx", "widen"):
            of = [row for row in rows if row.level == level]
            if of:
                lines.append(_line(source, level, of))
    written = read_rows(ROOT / "models_zoo" / "expected" / "source.csv").values()
    lines.append(_line("two of every family", "source", list(written)))
    return "\n".join(lines) + "\n"


def _line(source: str, level: str, rows: list[Row]) -> str:
    passed = [row for row in rows if row.status == PASSED]
    counts = Counter(_kind(row) for row in rows if row.status != PASSED)
    others = "; ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "-"
    read = f"{sum(row.rewritten for row in passed):,} / {sum(row.called for row in passed):,}"
    inside = f"{sum(row.fallback for row in passed):,}"
    return f"| {source} | {level} | {len(passed):,} of {len(rows):,} | {others} | {read} | {inside} |"


_REFUSED = {
    "is quantised": "quantised",
    "can't be traced": "a part can't be traced",
    " x the parameters": "less than 1.4 x the parameters",
}
"""Part of a reason -> what to say of it."""


def _kind(row: Row) -> str:
    if row.status == REFUSED:
        known = next((told for part, told in _REFUSED.items() if part in row.reason), row.reason[:60])
        return f"refused: {known}"
    if row.status == BASE:
        return "whose base alone the exporter does not take"
    return row.status


def main() -> None:
    """Put the table into the page."""
    text = PAGE.read_text()
    PAGE.write_text(MARKS.sub(lambda found: found.group(1) + table() + found.group(2), text))
    print(table())


if __name__ == "__main__":
    main()
