"""Imports point one way: the order that ``docs/architecture.md`` gives is that of the sources.

An import counts wherever it stands, inside functions and under ``TYPE_CHECKING``, too: it says what a file has to
know of another one.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "aimgraph"
ABOVE_ALL = ("__init__", "__main__")


class Import(NamedTuple):
    """One import of a module of the package.

    Attributes:
        file: Where it stands, relative to the package.
        line: Its line there.
        name: The module, with dots, as Python finds it.
        target: The file of that module, relative to the package.
    """

    file: Path
    line: int
    name: str
    target: Path

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def floors() -> list[list[str]]:
    """The names on each floor, lowest first, as the page has them."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    block = re.search(r"Imports, lowest first[^\n]*\n+```\w*\n(.*?)```", page, flags=re.DOTALL)
    assert block is not None, "docs/architecture.md has no fenced block headed 'Imports, lowest first'"
    return [line.split() for line in block.group(1).splitlines() if line.strip()]


def sources(package: Path) -> list[Path]:
    """Every source file relative to the package; what is behind a symlink counts under its name in the package."""
    found = [path for entry in package.iterdir() if entry.is_dir() for path in entry.rglob("*.py")]
    return sorted(path.relative_to(package) for path in (*package.glob("*.py"), *found))


def part_of(file: Path) -> str:
    """The top-level folder of a file, or the name of a file that is in none."""
    return file.parts[0].removesuffix(".py")


def imports(package: Path) -> Iterator[Import]:
    """Every import of one file of the package by another."""
    for file in sources(package):
        for node in ast.walk(ast.parse((package / file).read_text())):
            for name in _imported(package, file, node):
                target = _file(package, name)
                if target != file:
                    assert target is not None, f"{file}:{node.lineno} imports {name}, which does not exist"
                    yield Import(file, node.lineno, name, target)


def _imported(package: Path, file: Path, node: ast.AST) -> list[str]:
    """Modules of the package that a statement imports; ``from a import b`` names ``a.b`` if that is a module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] == package.name]
    if not isinstance(node, ast.ImportFrom):
        return []
    module = node.module or ""
    if node.level:
        above = [package.name, *file.parent.parts]
        module = ".".join([*above[: len(above) + 1 - node.level], *module.split()])
    if module.split(".")[0] != package.name:
        return []
    below = [f"{module}.{alias.name}" for alias in node.names]
    return list(dict.fromkeys(name if _file(package, name) else module for name in below))


def _file(package: Path, name: str) -> Path | None:
    """The file of a module, relative to the package."""
    place = Path(*name.split(".")[1:])
    for file in (place.with_suffix(".py") if place.name else place, place / "__init__.py"):
        if (package / file).is_file():
            return file
    return None


def misplaced(package: Path, order: list[list[str]]) -> list[str]:
    """Names that stand on no floor, or on several, and names on a floor that are nothing."""
    placed = [name for floor in order for name in floor]
    there = {part_of(file) for file in sources(package)} - set(ABOVE_ALL)
    return [
        *(f"{name} stands on no floor" for name in sorted(there - set(placed))),
        *(f"{name} stands on a floor and does not exist" for name in sorted(set(placed) - there)),
        *(f"{name} stands on several floors" for name in sorted({name for name in placed if placed.count(name) > 1})),
    ]


def against_the_order(package: Path, order: list[list[str]]) -> list[str]:
    """Imports that run up, or across from one part to another of the same floor."""
    level = {name: number for number, floor in enumerate([*order, *([name] for name in ABOVE_ALL)]) for name in floor}
    wrong = []
    for item in imports(package):
        here, there = part_of(item.file), part_of(item.target)
        if here != there and {here, there} <= level.keys() and level[there] >= level[here]:
            wrong.append(f"{item}, which {'runs up' if level[there] > level[here] else 'runs across'}")
    return wrong


def circles(package: Path) -> list[str]:
    """Files, and parts, that import each other in a circle, with the imports between them."""
    found = list(imports(package))
    told = []
    for kind, ends in (
        ("files", [(item.file, item.target) for item in found]),
        ("folders", [(part_of(item.file), part_of(item.target)) for item in found]),
    ):
        graph = nx.DiGraph([(start, end) for start, end in ends if start != end])
        for circle in nx.strongly_connected_components(graph):
            if len(circle) > 1:
                inside = [
                    str(i)
                    for i, (start, end) in zip(found, ends, strict=True)
                    if start != end and {start, end} <= circle
                ]
                told.append(f"a circle of {kind}, {', '.join(sorted(map(str, circle)))}: {'; '.join(inside)}")
    return told


def test_every_file_and_folder_stands_on_one_floor() -> None:
    assert len(sources(PACKAGE)) > 100
    assert misplaced(PACKAGE, floors()) == []


def test_no_import_runs_up_or_across() -> None:
    assert len(list(imports(PACKAGE))) > 500
    assert against_the_order(PACKAGE, floors()) == []


def test_no_circles() -> None:
    assert circles(PACKAGE) == []


def test_what_is_behind_a_symlink_counts_once() -> None:
    found = sources(PACKAGE)
    assert len(set(found)) == len(found)
    assert found.count(Path("passes/find_sites.py")) == found.count(Path("models_zoo/loader.py")) == 1


MADE_UP = {
    "__init__.py": "from made.top import run",
    "ground.py": "import torch",
    "low/__init__.py": "",
    "low/one.py": "from made.low import two\nfrom made import ground",
    "low/two.py": "from made.ground import x",
    "beside.py": "",
    "top.py": "from made.low.one import a\nimport made.beside",
}
ORDER = [["ground"], ["low", "beside"], ["top"]]


def _tree(folder: Path, **changed: str) -> Path:
    """A package `made`; a key of `changed` names a file with ``__`` for the slash, without ``.py``."""
    files = MADE_UP | {f"{name.replace('__', '/')}.py": text for name, text in changed.items()}
    for name, text in files.items():
        path = folder / "made" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "made"


def test_a_tree_in_order(tmp_path: Path) -> None:
    made = _tree(tmp_path)
    assert [str(item) for item in imports(made)] == [
        "__init__.py:1 imports made.top",
        "low/one.py:1 imports made.low.two",
        "low/one.py:2 imports made.ground",
        "low/two.py:1 imports made.ground",
        "top.py:1 imports made.low.one",
        "top.py:2 imports made.beside",
    ]
    assert misplaced(made, ORDER) == against_the_order(made, ORDER) == circles(made) == []


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("ground", "import torch\nimport made.top", "ground.py:2 imports made.top, which runs up"),
        ("ground", "from made.low.one import a", "ground.py:1 imports made.low.one, which runs up"),
        ("low__two", "from made import top", "low/two.py:1 imports made.top, which runs up"),
        ("low__two", "from made import run", "low/two.py:1 imports made, which runs up"),
        ("low__two", "from .. import top", "low/two.py:1 imports made.top, which runs up"),
        ("beside", "from made.low import one", "beside.py:1 imports made.low.one, which runs across"),
        ("low__two", "import made.beside", "low/two.py:1 imports made.beside, which runs across"),
        ("ground", "def f():\n    from made.low import two", "ground.py:2 imports made.low.two, which runs up"),
        (
            "ground",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.beside import B",
            "ground.py:3 imports made.beside, which runs up",
        ),
    ],
)
def test_an_import_against_the_order_is_named(tmp_path: Path, file: str, text: str, told: str) -> None:
    assert against_the_order(_tree(tmp_path, **{file: text}), ORDER) == [told]


def test_circles_are_named(tmp_path: Path) -> None:
    assert circles(_tree(tmp_path / "files", low__two="def f():\n    from made.low.one import a")) == [
        "a circle of files, low/one.py, low/two.py: "
        "low/one.py:1 imports made.low.two; low/two.py:2 imports made.low.one"
    ]
    found = circles(_tree(tmp_path / "folders", ground="import made.beside", beside="import made.low.two"))
    assert [line.partition(":")[0] for line in found] == [
        "a circle of files, beside.py, ground.py, low/two.py",
        "a circle of folders, beside, ground, low",
    ]


def test_what_stands_nowhere_is_named(tmp_path: Path) -> None:
    made = _tree(tmp_path, new__file="")
    assert misplaced(made, [["ground", "gone"], ["low", "beside"], ["top", "low"]]) == [
        "new stands on no floor",
        "gone stands on a floor and does not exist",
        "low stands on several floors",
    ]
