"""What kind a layer is of is asked in one place: nothing outside of ``layer_kinds`` tests for torch's layer classes."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn
from torch.nn.modules import conv

from aimgraph.runtime.layer_kinds import AffineLayer
from aimgraph.torch_private import ConvNd

ROOT = Path(__file__).parents[3]
NORMS = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d"}
EXCEPTIONS = {
    "passes/fold_batchnorm.py": NORMS,  # what the pass folds into the layer before it
    "aimgraph/tracing/wrapped.py": {"DataParallel"},  # a wrapper, which is refused
}
GENERAL = {nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict}
LAYERS = {
    name
    for name, value in {**vars(nn), **vars(conv), "ConvNd": ConvNd, "AffineLayer": AffineLayer}.items()
    if inspect.isclass(value) and issubclass(value, nn.Module) and value not in GENERAL
}


def asked_for(source: str) -> Iterator[str]:
    """Layer classes that code tests for, in isinstance, issubclass or by `type(...) is`, directly or in a table."""
    tree = ast.parse(source)
    tables = {
        target.id: statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None
        for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        tested: list[ast.expr] = []
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            tested = node.args[1:]
        elif isinstance(node, ast.Compare) and ast.unparse(node.left).startswith("type("):
            tested = node.comparators
        for part in tested:
            for inner in ast.walk(part):
                yield from _layers_in(tables.get(inner.id, inner) if isinstance(inner, ast.Name) else inner)


def _layers_in(part: ast.AST) -> Iterator[str]:
    for inner in ast.walk(part):
        name = inner.attr if isinstance(inner, ast.Attribute) else inner.id if isinstance(inner, ast.Name) else ""
        if name in LAYERS:
            yield name


def files() -> list[str]:
    found = (path for folder in ("aimgraph", "passes") for path in (ROOT / folder).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in found if "layer_kinds" not in path.parts)


def test_no_file_but_the_kinds_tests_for_layer_classes() -> None:
    told = {file: set(asked_for((ROOT / file).read_text())) for file in files()}
    assert {file: names for file, names in told.items() if names} == EXCEPTIONS


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("isinstance(layer, nn.Linear | nn.Conv2d)", {"Linear", "Conv2d"}),
        ("KINDS = (nn.Conv1d,)\nisinstance(layer, KINDS)", {"Conv1d"}),
        ("issubclass(kind, _ConvTransposeNd)", {"_ConvTransposeNd"}),
        ("type(layer) is nn.Linear", {"Linear"}),
        ("assert isinstance(layer, AffineLayer)", {"AffineLayer"}),
        ("isinstance(layer, nn.Module)", set()),
        ("def f(layer: nn.Linear) -> None: ...", set()),
    ],
)
def test_it_sees_what_it_looks_for(code: str, found: set[str]) -> None:
    assert set(asked_for(code)) == found
