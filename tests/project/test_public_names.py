"""`import aimgraph` is quick and gives everything: names when they are used, modules by any path below it."""

import ast
import doctest
import importlib
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import aimgraph

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_type_checkers_see_what_is_there_at_run_time() -> None:
    tree = ast.parse((ROOT / "aimgraph" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in ast.walk(block) if isinstance(node, ast.ImportFrom)]
    told = {alias.name: str(node.module) for node in imports for alias in node.names}
    assert {name for name, home in told.items() if home == "aimgraph"} == {"models_zoo", "presets"}
    assert {name: home for name, home in told.items() if home != "aimgraph"} == aimgraph._HOMES
    assert sorted(aimgraph.__all__) == sorted([*told, "__version__"])


@pytest.mark.parametrize("name", aimgraph.__all__)
def test_every_public_name_is_found(name: str) -> None:
    value = getattr(aimgraph, name)
    assert value is getattr(aimgraph, name)
    if home := aimgraph._HOMES.get(name):
        assert value is getattr(importlib.import_module(home), name)
        assert pickle.loads(pickle.dumps(value)) is value
        if inspect.isfunction(value):
            assert inspect.signature(value).parameters
            assert value.__module__ == home


def test_nothing_is_imported_before_it_is_used() -> None:
    seen = run(
        "import sys, aimgraph; print('torch' in sys.modules, dir(aimgraph) == sorted(aimgraph.__all__), "
        "aimgraph.__version__ != '', aimgraph.ConfigError.__name__, 'torch' in sys.modules)"
        "; aimgraph.AimConfig; print('torch' in sys.modules)"
    )
    assert seen.split() == ["False", "True", "True", "ConfigError", "False", "True"]


def test_everything_at_once() -> None:
    code = "from aimgraph import *\nprint(transform.__module__, widen.__module__, models_zoo.__name__)"
    assert run(code).split() == ["aimgraph.api.transform", "aimgraph.api.widen", "aimgraph.models_zoo"]


def test_modules_are_found_by_any_path() -> None:
    code = (
        "import aimgraph\nprint(aimgraph.models_zoo.loader.load_model.__name__, "
        "aimgraph.runtime.layer_kinds.register_layer_kind.__name__, aimgraph.passes.PLANNING[0].name)\n"
        "import aimgraph.widen.plan\nprint(aimgraph.widen.__name__, aimgraph.widen.__module__)\n"
    )
    assert run(code).split() == ["load_model", "register_layer_kind", "find-sites", "widen", "aimgraph.api.widen"]


def test_an_earlier_path_leads_to_the_same_module() -> None:
    code = (
        "import aimgraph.runtime.session\nfrom aimgraph.runtime.session import MemorySession\nimport aimgraph\n"
        "print(aimgraph.runtime.session.__spec__.name, aimgraph.MemorySession is MemorySession)"
    )
    assert run(code).split() == ["aimgraph.onnx.session", "True"]


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(AttributeError, match="module 'aimgraph' has no attribute 'transfrom'"):
        aimgraph.transfrom  # noqa: B018
    with pytest.raises(AttributeError, match=r"module 'aimgraph\.passes' has no attribute 'nothing'"):
        aimgraph.passes.nothing  # noqa: B018
    assert not hasattr(aimgraph, "__wrapped__")


def test_doctest_finds_the_examples() -> None:
    found = doctest.DocTestFinder().find(aimgraph.AimConfig, "AimConfig")
    assert [len(test.examples) for test in found if test.name == "AimConfig"] == [1]
    assert doctest.DocTestFinder().find(aimgraph)[0].name == "aimgraph"


def test_a_name_can_be_replaced_for_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aimgraph, "widen", len)
    assert aimgraph.widen is len


TYPED = """
import aimgraph
from torch import nn
aim = aimgraph.transform(nn.Sequential(nn.Linear(2, 2)))
reveal_type(aim)
reveal_type(aim.use)
aim.add_memory_set("b")
reveal_type(aimgraph.transform(nn.Sequential(nn.Linear(2, 2)), within="0"))
reveal_type(aimgraph.plan(aim))
aim.use(3)
"""


@pytest.mark.slow
def test_editors_know_what_transform_gives() -> None:
    arguments = ["-c", TYPED, "--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    told = run(f"from mypy.api import run\nprint(*run({arguments}))")
    for revealed in (
        '"aimgraph.emit.module.AimModule"',
        '"def (name: str)"',
        '"torch.nn.modules.container.Sequential"',
        '"aimgraph.planning.plan.Plan"',
        'Argument 1 to "use" of "AimModule" has incompatible type "int"; expected "str"',
    ):
        assert revealed in told, told


def test_the_two_types_of_transform_have_its_arguments() -> None:
    from typing import get_overloads

    part, whole = map(inspect.signature, get_overloads(aimgraph.transform))
    own = inspect.signature(aimgraph.transform).parameters
    assert {**part.parameters}.keys() - {"within"} == whole.parameters.keys() == own.keys()
    for name, parameter in own.items():
        assert whole.parameters[name].default == parameter.default == part.parameters[name].default
    assert whole.return_annotation is aimgraph.AimModule
    assert isinstance(aimgraph.transform(nn.Sequential(nn.Linear(9, 9)), budget=9.0), aimgraph.AimModule)
