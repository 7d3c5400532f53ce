"""What the README shows is true."""

import ast
import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from aimgraph.compiler.program import Changes, Program
from benchmarks import evidence, performance
from benchmarks.coverage import MARKS, PAGE, table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "aimgraph").rglob("*.md"),
]


def test_the_python_of_the_readme_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)
    assert "aim" in scope


@pytest.mark.slow
def test_the_python_of_the_page_on_deployment_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 7
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)
    assert {path.name for path in (tmp_path / "out" / "deploy").iterdir()} >= {
        *("first", "cats", "constant.onnx", "input.onnx", "state.onnx")
    }


def test_round_trips_are_what_they_should_be() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "round_trips.json").read_text())
    assert len(found) == 9
    for row in found.values():
        assert all(value for value in row.values() if isinstance(value, bool))
        assert all(float(row[f"onnx, {memory}"]) <= 1e-4 for memory in ("constant", "input", "state"))


def test_the_table_is_the_measured_one() -> None:
    shown = re.search(r"<!-- table: make table -->\n(.*?)<!-- end of table -->", README, flags=re.DOTALL)
    assert shown is not None
    assert shown.group(1) == (ROOT / "benchmarks" / "results" / "seed_networks.md").read_text()


def test_the_table_of_models_is_that_of_the_result_files() -> None:
    shown = MARKS.search(PAGE.read_text())
    assert shown is not None
    assert shown.group(0) == f"{shown.group(1)}{table()}{shown.group(2)}"


def test_the_tables_of_costs_are_those_of_the_result_files() -> None:
    shown = [found for page in performance.PAGES for found in performance.MARKS.finditer(page.read_text())]
    names = {found.group(2) for found in shown}
    assert names >= {"cost_cpu", "onnx_cost", "transform_time", "depth", "serve", "round_trips"}
    for found in shown:
        assert found.group(0) == f"{found.group(1)}{performance.table(found.group(2))}{found.group(3)}"


def test_the_page_on_passes_is_the_example_line_by_line() -> None:
    example = (ROOT / "examples" / "bottleneck_adapters.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "writing_passes.md").read_text(), flags=re.DOTALL)
    places = [example.index(block) for block in blocks]
    assert places == sorted(places)
    pass_lines = example.partition("    def run(")[2].partition("def main")[0].split("\n")
    assert set(pass_lines[1:]) <= {line for block in blocks for line in block.split("\n")}


def test_the_page_on_passes_has_every_key_and_field() -> None:
    page = (ROOT / "docs" / "writing_passes.md").read_text()
    keys = re.findall(
        r'^(\w+) = .*\n"""Key in ``node.meta``', (ROOT / "aimgraph/compiler/node_keys.py").read_text(), re.M
    )
    assert len(keys) == 14
    for name in (*keys, *(item.name for item in (*fields(Program), *fields(Changes)))):
        assert f"| `{name}` |" in page, name


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


def test_the_places_that_are_named_exist() -> None:
    """`folder/file.py` is a file, and `file.py:name` a definition in it: below the root, the page's folder or tests."""
    assert len(PAGES) > 30
    missing = []
    for page in PAGES:
        for path, name in re.findall(r"`([\w/]+\.py)(?::([\w.]+))?`", page.read_text()):
            file = next(
                (place / path for place in (ROOT, page.parent, ROOT / "tests") if (place / path).is_file()), None
            )
            if file is None and ("/" in path or name):
                missing.append((page.name, path))
            elif file is not None and name and name not in _definitions(ast.parse(file.read_text())):
                missing.append((page.name, f"{path}:{name}"))
    assert missing == []


def _definitions(tree: ast.AST, prefix: str = "") -> set[str]:
    """Functions, classes, their methods, and names that a module assigns."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found |= {prefix + node.name}
            found |= _definitions(node, f"{prefix}{node.name}.") if isinstance(node, ast.ClassDef) else set()
        elif isinstance(node, ast.Assign):
            found |= {prefix + target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def test_the_tree_has_every_folder() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for folder in (ROOT / "aimgraph").iterdir():
        if (folder / "__init__.py").exists():
            place = f"{folder.name}/" if folder.is_symlink() else f"aimgraph/{folder.name}/"
            assert f"`{place}`" in page, place


def test_the_tests_that_are_named_exist() -> None:
    sources = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    made = "\n".join(sources.values())
    for name in re.findall(r"`([\w/]*test_[\w.*]+)`", (ROOT / "docs" / "compatibility.md").read_text()):
        file = name.rpartition("/")[2]
        assert file in sources or f"def {name.removesuffix('*')}" in made, name


def test_the_readme_begins_with_what_a_newcomer_needs() -> None:
    first_screen = "\n".join(README.splitlines()[:40])
    for word in ("make demo", "make test", "aimgraph.transform(", "sites read / present"):
        assert word in first_screen


def test_what_the_page_on_evidence_shows_is_in_the_results() -> None:
    shown = list(evidence.MARKS.finditer(evidence.PAGE.read_text()))
    assert {found.group(2) for found in shown} >= {"controls", "sensor-50", "drift", "none"}
    for found in shown:
        assert found.group(0) == f"{found.group(1)}{evidence.text_of(found.group(2))}{found.group(3)}"
