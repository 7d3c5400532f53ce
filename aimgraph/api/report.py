"""What `verify` reports: checks, each with what was seen."""

import io
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Check:
    """One claim; true where it holds.

    Attributes:
        name: What it is about.
        ok: Whether it holds, as far as it was looked at.
        detail: What was seen.
        compared: Whether there was anything to compare.
    """

    name: str
    ok: bool
    detail: str
    compared: bool = True

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True)
class Report:
    """All checks of one module; true where every claim holds.

    Attributes:
        checks: In the order they were made.
        max_difference: Largest |aim - base| seen with memory, in eval mode.
    """

    checks: tuple[Check, ...]
    max_difference: float

    @property
    def ok(self) -> bool:
        """Whether every claim holds."""
        return all(check.ok for check in self.checks)

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self) | {"ok": self.ok}

    def __str__(self) -> str:
        """The report as a table."""
        table = Table("check", "", "seen")
        for check in self.checks:
            seen = "ok" if check.compared else "-"
            table.add_row(check.name, seen if check.ok else "FAILED", check.detail)
        table.add_row("largest |aim - base|, with memory (eval)", "", f"{self.max_difference:.3g}")
        text = io.StringIO()
        Console(width=120, file=text, color_system=None).print(table)
        return text.getvalue().rstrip("\n")
