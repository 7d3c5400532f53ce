"""Names of torch that are not public stand in one file, and a version that nobody tested is said once."""

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import aimgraph
from aimgraph import torch_private
from tests.nets import build

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("aimgraph", "passes", "models_zoo") for path in (ROOT / folder).rglob("*.py"))
ONLY = ROOT / "aimgraph" / "torch_private.py"


def private(name: str) -> bool:
    """Whether a dotted name is of torch and not public; ``torch.__version__`` is."""
    first, *parts = name.split(".")
    return first == "torch" and any(part.startswith("_") and not part.startswith("__") for part in parts)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute chain that begins with a name; empty for anything else."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return before and f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def names(source: str) -> Iterator[str]:
    """Everything that a file imports, and its attribute chains as far as the names imported from torch tell."""
    tree = ast.parse(source)
    of_torch: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for alias in node.names:
                full = f"{module}.{alias.name}" if module else alias.name
                if full.partition(".")[0] == "torch" and (module or alias.asname):
                    of_torch[alias.asname or alias.name] = full
                yield full
    for node in ast.walk(tree):
        first, dot, rest = dotted(node).partition(".")
        yield of_torch.get(first, first) + dot + rest


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_one_file_names_what_is_private(path: Path) -> None:
    found = sorted({name for name in names(path.read_text()) if private(name)})
    assert found == [] if path != ONLY else len(found) > 10


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "from torch._subclasses import fake_tensor",
        "from torch.nn.modules.conv import _ConvNd",
        "from torch.fx import _symbolic_trace as tracing",
        "import torch\ntorch._C._current_graph_task_id()",
        "from torch import fx\nfx.graph._format_target = None",
        "def late():\n    from torch.utils._pytree import tree_map",
        "from torch.nn.parallel import DistributedDataParallel as DDP\nDDP._get_active_ddp_module()",
    ],
)
def test_what_counts_as_private(source: str) -> None:
    assert any(private(name) for name in names(source))


@pytest.mark.parametrize("source", ["import torch\ntorch.__version__", "import _operator", "module._modules"])
def test_what_does_not(source: str) -> None:
    assert not any(private(name) for name in names(source))


def test_it_imports_nothing_of_aimgraph() -> None:
    assert not [name for name in names(ONLY.read_text()) if name.startswith("aimgraph")]


@pytest.fixture
def untold() -> Iterator[None]:
    torch_private.warn_if_untested.cache_clear()
    yield
    torch_private.warn_if_untested.cache_clear()


@pytest.mark.usefixtures("untold")
def test_an_untested_version_is_said_once_at_the_first_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.99.0a0+git")
    base, x = build("residual")
    with pytest.warns(UserWarning, match=r"not tested with torch 2\.99\.0a0\+git: .* try one of 2\.\d+, ") as told:
        [aimgraph.transform(base, x, shape=(3,)) for _ in range(2)]
    assert [Path(one.filename) for one in told] == [Path(__file__)]


@pytest.mark.usefixtures("untold")
@pytest.mark.parametrize("version", [".".join(map(str, one)) for one in torch_private.TESTED])
def test_a_tested_version_is_not_said(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", f"{version}.1+cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aimgraph.transform(*build("residual"), shape=(3,))
