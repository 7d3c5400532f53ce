"""Lines of code of `aimgraph/` and `passes/`: not blank, and outside docstrings; imports apart.

Run as ``python -m benchmarks.lines [CHECKOUT ...]``; this checkout by default.
"""

import ast
import sys
from pathlib import Path


def files(root: Path) -> list[Path]:
    """Every source file once: two folders are reached through links as well."""
    return sorted({path.resolve() for folder in ("aimgraph", "passes") for path in (root / folder).rglob("*.py")})


def counted(source: str) -> tuple[int, int]:
    """Lines of code, and how many of them are imports."""
    texts: set[int] = set()
    imports: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts.update(range(node.lineno, (node.end_lineno or 0) + 1))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            imports.update(range(node.lineno, (node.end_lineno or 0) + 1))
    code = [n for n, line in enumerate(source.splitlines(), 1) if line.strip() and n not in texts]
    return len(code), sum(n in imports for n in code)


def main() -> None:
    for root in map(Path, sys.argv[1:] or [Path(__file__).parents[1]]):
        found = [path for path in files(root) if "models_zoo" not in path.parts]
        lines = [counted(path.read_text(encoding="utf-8")) for path in found]
        code, imports = map(sum, zip(*lines, strict=True))
        print(f"{root}: {len(found)} files, {code:,} lines, {imports:,} of them imports")


if __name__ == "__main__":
    main()
