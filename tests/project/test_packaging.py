"""A wheel, installed where nothing else of the project is."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns(".git", ".venv*", "out", "__pycache__", "*.egg-info", "build", "dist", ".*_cache")
    tree = source / "tree"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=ignore)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(source / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_a_fresh_environment_has_aimgraph_and_nothing_else(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    before = {path.name for path in site.iterdir()}
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", str(wheel)], check=True)
    added = {path.name for path in site.iterdir()} - before
    assert {name.partition("-")[0] for name in added} == {"aimgraph"}
    assert len(added) == 2
    assert {path.name for path in (site / "aimgraph").iterdir()} >= {
        "passes",
        "models_zoo",
        "runtime",
        "cli",
        "py.typed",
    }
    # The dependencies come from here, as plain files on the path: no editable install of ours is among them.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = (
        "import aimgraph, aimgraph.passes, torch; from aimgraph.models_zoo import mlp;"
        "x = torch.zeros(1, 4); print(aimgraph.__file__); print(aimgraph.transform(mlp(4, (3,), 2), x)(x).shape)"
    )
    done = subprocess.run([python, "-c", script], cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    location, shape = done.stdout.splitlines()
    assert Path(location).is_relative_to(site)
    assert shape == "torch.Size([1, 2])"
    entry = subprocess.run(
        [tmp_path / "venv" / "bin" / "aimgraph", "plan", "zoo/mlp"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert entry.returncode == 0, entry.stderr
    assert "sites read / called / layers present: 3 / 3 / 3" in entry.stdout


@pytest.mark.parametrize("name", ["passes", "models_zoo"])
def test_a_second_copy_can_not_be_imported(name: str) -> None:
    command = [sys.executable, "-c", f"import {name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"import aimgraph.{name} instead" in done.stderr
