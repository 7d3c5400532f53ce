"""From the concat form to a sum."""

import copy

import pytest
import torch

from aimgraph.compiler.graph_text import graph_text
from aimgraph.compiler.program import Stage
from aimgraph.config import AimConfig
from aimgraph.passes import InsertUpdates, SplitConcat
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.reads.view import expand_batch
from tests.nets import NETS
from tests.passes.helpers import after, calls, execute, fingerprint, program_for, randomise_program


@pytest.mark.parametrize("name", NETS)
def test_equal_to_the_form_before(name: str) -> None:
    program, x = program_for(name, None, AimConfig(shape=(2, 3, 5)))
    program = after(program, x, InsertUpdates)
    randomise_program(program)
    results = []
    start = copy.deepcopy(program.root.state_dict())
    for step in (None, SplitConcat()):
        if step is not None:
            result = step.run(program)
            assert result.modified == any(not read.raw for read in program.plan.memories[0].reads)
            assert step.ensures is Stage.LOWERED
            assert not result.skipped
        for graph in program.graphs:
            program.root.load_state_dict(start)
            program.root.train(graph == "train")
            program.root.zero_grad()
            torch.manual_seed(0)
            inputs = x.clone().requires_grad_()
            out = execute(program, inputs, graph)
            out.square().sum().backward()
            gradients = {n: p.grad.clone() for n, p in program.root.named_parameters() if p.grad is not None}
            results.append((out.detach(), inputs.grad, gradients))
    half = len(results) // 2
    for before, now in zip(results[:half], results[half:], strict=True):
        assert (before[0] - now[0]).abs().max() < 1e-9
        assert (before[1] - now[1]).abs().max() < 1e-9
        assert set(before[2]) == set(now[2])
        assert all((gradient - now[2][key]).abs().max() < 1e-9 for key, gradient in before[2].items())


def test_golden() -> None:
    program, x = program_for("conv1d", None, AimConfig(shape=(9, 1, 2), sites=("2",)))
    text = graph_text(after(program, x, SplitConcat).graphs["both"]).splitlines()
    assert [line.split("  #")[0] for line in text[-4:]] == [
        "%_2 : [num_users=1] = call_module[target=2](args = (%_1,), kwargs = {})",
        "%aim_memory_reads_2 : [num_users=1] = call_module[target=aim.memory.reads.2](args = (%fit,), kwargs = {})",
        "%accumulate : [num_users=1] = call_function[target=aimgraph.runtime.accumulate.accumulate]"
        "(args = (%_2, %aim_memory_reads_2), kwargs = {})",
        "return accumulate",
    ]


def test_call_time_output_size_goes_to_both_terms() -> None:
    program, x = program_for("output_size")
    program = after(program, x, SplitConcat)
    terms = [node for node in program.graphs["both"].nodes if node.target in ("up", "aim.memory.reads.up")]
    assert len(terms) == 2
    assert terms[0].kwargs["output_size"] is terms[1].kwargs["output_size"]


def test_static_memory_is_not_expanded() -> None:
    program, x = program_for("conv2d")
    program = after(program, x, SplitConcat)
    assert not calls(program, expand_batch)
    assert not calls(program, torch.cat)
    assert len(calls(program, accumulate)) == 2


def test_declines_sites_in_concat_form() -> None:
    program, x = program_for("conv2d", None, AimConfig(lowering="concat"))
    program = after(program, x, InsertUpdates)
    before = fingerprint(program)
    result = SplitConcat().run(program)
    assert not result.modified
    assert [(s.path, s.reason) for s in result.skipped] == [
        ("0", "planned in concat form"),
        ("2", "planned in concat form"),
    ]
    assert fingerprint(result.program) == before


def test_idempotent() -> None:
    program, x = program_for("conv2d")
    program = after(program, x, SplitConcat)
    before = fingerprint(program)
    assert not SplitConcat().run(program).modified
    assert fingerprint(program) == before
