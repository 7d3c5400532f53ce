"""What passes declare to change is allowed, all of it and nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

from aimgraph import PassError
from aimgraph.compiler.graph_tools import insert_input
from aimgraph.compiler.node_keys import SHAPES
from aimgraph.compiler.pipeline import Pipeline
from aimgraph.compiler.program import BasePass, Changes, PassResult, Program, Stage
from aimgraph.passes import PLANNING, FindSites, FoldMemory, PlanMemory, RemoveDead
from tests.passes.helpers import program_for

NONE = Changes()


@dataclass(frozen=True)
class Edit(BasePass):
    """Does to a program what it is told to, and declares what it is told to."""

    edit: Callable[[Program], None]
    changes: Changes = NONE

    def run(self, program: Program) -> PassResult:
        self.edit(program)
        return PassResult(program, True, changes=self.changes)


def wider(program: Program) -> None:
    """One output channel more at the last layer, a convolution."""
    program.root.add_module("0", nn.Conv2d(3, 5, 3, dtype=torch.float64))


def another_input(program: Program) -> None:
    insert_input(program, "both", "extra", torch.zeros(2))


def another_output(program: Program) -> None:
    end = program.graphs["both"].output_node()
    end.args = ((end.args[0], end.args[0]),)


def another_name(program: Program) -> None:
    program.root.register_buffer("counter", torch.zeros(1))


BOTH = {"output", "output[0]", "output[1]"}
EDITS = [
    (
        another_input,
        Changes(inputs=frozenset({"extra"})),
        r"the inputs changed from \('input',\) to \('extra', 'input'",
    ),
    (another_output, Changes(outputs=frozenset(BOTH)), r"output was \[2, .*\] before and is nothing now"),
    (another_name, Changes(names=frozenset({"counter"})), r"names of the base changed: lost \[\], new \['counter'\]"),
]


def one_layer() -> Program:
    base = nn.Sequential(nn.Conv2d(3, 4, 3)).double()
    return program_for(base, torch.randn(2, 3, 6, 6, dtype=torch.float64))[0]


@pytest.mark.parametrize("verify", ["touched", "full"])
@pytest.mark.parametrize(("edit", "changes", "message"), EDITS, ids=[edit.__name__ for edit, *_ in EDITS])
def test_what_is_declared_is_allowed_and_nothing_else(edit: Any, changes: Changes, message: str, verify: Any) -> None:
    result = Pipeline((Edit(edit, changes), RemoveDead()), verify).run(one_layer())
    assert result.changes == changes
    assert result.program.signature.placeholders["both"][-1] == "input"
    with pytest.raises(PassError, match=f"edit: {message}"):
        Pipeline((Edit(edit),), verify).run(one_layer())


@pytest.mark.parametrize(("edit", "changes", "message"), EDITS, ids=[edit.__name__ for edit, *_ in EDITS])
def test_a_pass_that_says_it_modified_nothing_is_held_to_it(edit: Any, changes: Changes, message: str) -> None:
    class Silent(Edit):
        def run(self, program: Program) -> PassResult:
            return replace(super().run(program), modified=False)

    with pytest.raises(PassError, match=r"silent: it says that it has modified nothing, and changed \w+"):
        Pipeline((Silent(edit, changes),)).run(one_layer())


@pytest.mark.parametrize("verify", ["touched", "full"])
def test_declared_shapes_are_derived_anew_wherever_they_spread(verify: Any) -> None:
    shapes, outputs = Changes(shapes=frozenset({"_0"})), Changes(outputs=frozenset({"output"}))
    program = Pipeline((Edit(wider, shapes | outputs),), verify).run(one_layer()).program
    (node,) = program.graphs["both"].find_nodes(op="call_module")
    assert node.meta[SHAPES] == ((2, 5, 4, 4), (3, 5, 4, 4))
    with pytest.raises(PassError, match=r"output was \[2, 4, 4, 4\] before and is \[2, 5, 4, 4\] now"):
        Pipeline((Edit(wider, shapes),), verify).run(one_layer())
    with pytest.raises(PassError, match=r"_0 gave \[2, 4, 4, 4\] before and gives \[2, 5, 4, 4\] now"):
        Pipeline((Edit(wider, outputs),), "full").run(one_layer())


@pytest.mark.parametrize("field", ["shapes", "inputs", "outputs", "names"])
def test_a_declaration_of_nothing_is_refused(field: str) -> None:
    declared = Changes(**{field: frozenset({"nothing"})})
    with pytest.raises(PassError, match=rf"declares changes of {field} that are as before: \['nothing'\]"):
        Pipeline((Edit(lambda _: None, declared),)).run(one_layer())


def test_a_pipeline_is_a_pass() -> None:
    first = Pipeline((FindSites(), Pipeline(PLANNING[1:])))
    assert (first.name, first.requires, first.ensures) == ("pipeline", Stage.TRACED, Stage.PLANNED)
    assert Pipeline(PLANNING[1:]).requires is Stage.ANALYSED
    assert Pipeline((FoldMemory(), PlanMemory())).requires is Stage.LOWERED
    named = Edit(another_name, EDITS[2][1])
    inner, outer = [], []
    edits = Pipeline((named, Edit(lambda _: None)), watch=[lambda step, _: inner.append(step.name)])
    result = Pipeline((first, edits), watch=[lambda step, _: outer.append(step.name)]).run(one_layer())
    assert (inner, len(outer)) == (["edit", "edit"], 5)
    assert result.program.stage is Stage.PLANNED
    assert result.changes == named.changes
    names = [entry.name for entry in result.program.history]
    assert names == ["find-sites", "place-updates", "plan-memory", "edit", "edit"]
    assert result.modified
    assert not Pipeline(PLANNING).run(one_layer()).modified
