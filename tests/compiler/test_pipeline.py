"""Passes in order: names, history, dumps."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import aimgraph
import aimgraph.passes
from aimgraph.compiler.graph_text import DumpTo
from aimgraph.compiler.pipeline import Pipeline
from aimgraph.compiler.program import Pass, Program, Stage
from aimgraph.config import AimConfig
from aimgraph.errors import ConfigError
from aimgraph.passes import EMITTING, EXPORTING, FOLDING, FREEZING, PLANNING, WIDENING
from tests.nets import build
from tests.passes.helpers import program_for

ROOT = Path(__file__).parents[2]


def test_one_derivation_of_names() -> None:
    """find_sites.py -> FindSites -> find-sites -> tests/passes/test_find_sites.py, for every pass."""
    files = {path.stem for path in (ROOT / "passes").glob("*.py")} - {"__init__", "graph_tools"}
    classes = set()
    for stem in files:
        name = "".join(word.capitalize() for word in stem.split("_"))
        module = importlib.import_module(f"aimgraph.passes.{stem}")
        step = getattr(aimgraph.passes, name)()
        assert getattr(module, name) is type(step)
        assert step.name == stem.replace("_", "-")
        assert (ROOT / "tests" / "passes" / f"test_{stem}.py").exists()
        assert module.__doc__
        for word in ("Before", "fter", "Declines"):
            assert word in module.__doc__, (stem, word)
        classes.add(type(step))
    assert {type(step) for step in (*PLANNING, *EMITTING, *FOLDING, *EXPORTING, *FREEZING, *WIDENING)} == classes


def test_history_and_watch() -> None:
    program, _x = program_for("residual", None, AimConfig(updates="stages"))
    seen: list[tuple[str, Stage]] = []

    def watch(step: Pass, now: Program) -> None:
        seen.append((step.name, now.stage))

    program = Pipeline((*PLANNING, *EMITTING), watch=[watch]).run(program).program
    names = [entry.name for entry in program.history]
    assert names == [name for name, _ in seen]
    assert names == [
        "find-sites", "place-updates", "plan-memory", "insert-memory", "insert-updates", "split-concat",
        "concat-layers", "remove-dead",
    ]  # fmt: skip
    assert [stage for _, stage in seen] == [Stage.ANALYSED] * 2 + [Stage.PLANNED] + [Stage.MEMORY] * 2 + [
        Stage.LOWERED
    ] * 3
    assert [entry.modified for entry in program.history] == [False] * 3 + [True] * 3 + [False, True]
    assert all(entry.seconds > 0 for entry in program.history)


def test_dump_writes_the_graph_after_each_pass(tmp_path: Path) -> None:
    base, x = build("functional_dropout")
    aimgraph.transform(base, x, dump=tmp_path / "graphs")
    files = sorted(path.name for path in (tmp_path / "graphs").iterdir())
    assert files[:3] == ["00-traced.eval.txt", "00-traced.train.txt", "01-find-sites.eval.txt"]
    assert len(files) == 18
    text = (tmp_path / "graphs" / "04-insert-memory.train.txt").read_text()
    assert re.match(r"# insert-memory: modified=True, [\d.]+ ms, MEMORY\n", text)
    assert "aim._concat.conv" in text
    assert "[2, 6, 4, 4]" in text
    assert "aim._concat" not in (tmp_path / "graphs" / "08-remove-dead.train.txt").read_text()


def test_dump_to_is_a_watch(tmp_path: Path) -> None:
    program, _x = program_for("linear")
    Pipeline(PLANNING, watch=[DumpTo(tmp_path)]).run(program)
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "00-traced.txt", "01-find-sites.txt", "02-place-updates.txt", "03-plan-memory.txt",
    ]  # fmt: skip


@pytest.mark.parametrize("verify", ["all", "Full", "", None, True])
def test_an_unknown_way_to_verify_is_refused(verify: Any) -> None:
    base, x = build("linear")
    with pytest.raises(ConfigError, match=f'verify={verify!r}: give "touched", or "full"'):
        aimgraph.transform(base, x, verify=verify)
    with pytest.raises(ConfigError, match=f'verify={verify!r}: give "touched", or "full"'):
        Pipeline(PLANNING, verify)
