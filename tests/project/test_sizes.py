"""The house stays small: files and functions that fit a screen or two."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_FILE = 400
LONGEST_FUNCTION = 30
MOST_FILES_IN_THE_ROOT = 12


def files() -> Iterator[Path]:
    links = [path for path in (ROOT / "aimgraph").iterdir() if path.is_symlink()]
    for folder in (ROOT / "aimgraph", ROOT / "passes"):
        yield from (path for path in folder.rglob("*.py") if not any(link in path.parents for link in links))


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement behind the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def functions() -> dict[str, int]:
    """Path and name -> lines of the body."""
    found: dict[str, int] = {}
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(ROOT).as_posix()}:{node.name}"
                found[name] = max(length(node), found.get(name, 0))  # methods of two classes
    return found


def test_functions_fit_a_screen() -> None:
    assert {name: lines for name, lines in functions().items() if lines > LONGEST_FUNCTION} == {}


def test_files_are_one_idea() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files()}
    assert {str(path): count for path, count in lines.items() if count > LONGEST_FILE} == {}


def test_the_root_of_the_package_holds_little() -> None:
    assert len(list((ROOT / "aimgraph").glob("*.py"))) <= MOST_FILES_IN_THE_ROOT
