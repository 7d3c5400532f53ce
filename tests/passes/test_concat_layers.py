"""Really widened layers."""

import pytest
import torch

from aimgraph.compiler.program import Stage
from aimgraph.config import AimConfig
from aimgraph.passes import ConcatLayers, SplitConcat
from tests.nets import NETS
from tests.passes.helpers import after, execute, fingerprint, program_for, randomise_program


@pytest.mark.parametrize("name", NETS)
def test_equal_to_the_form_before(name: str) -> None:
    program, x = program_for(name, None, AimConfig(shape=(2, 3, 5), lowering="concat"))
    program = after(program, x, SplitConcat)
    randomise_program(program)
    program.root.eval()
    graph = "eval" if "eval" in program.graphs else "both"
    expected = execute(program, x, graph)
    result = ConcatLayers().run(program)
    assert result.modified == any(r.lowering == "concat" for m in program.plan.memories for r in m.reads)
    assert ConcatLayers().ensures is Stage.LOWERED
    assert (execute(program, x, graph) - expected).abs().max() < 1e-9


def test_weights_and_channel_counts() -> None:
    program, x = program_for("transposed_grouped", None, AimConfig(shape=(2, 3, 10), lowering="concat"))
    layer = program.root.get_submodule("0")
    program = after(program, x, ConcatLayers)
    assert program.root.get_submodule("0") is layer  # the same module, so its own forward stays
    assert (layer.in_channels, tuple(layer.weight.shape)) == (4 + 2 * 5, (4 + 2 * 5, 3, 3, 3))
    names = [name for name, _ in program.root.named_modules()]
    assert not [name for name in names if "_concat" in name or name.endswith("reads.0")]


def test_declines_split_form() -> None:
    program, x = program_for("conv2d")
    program = after(program, x, SplitConcat)
    before = fingerprint(program)
    result = ConcatLayers().run(program)
    assert not result.modified
    assert [(s.path, s.reason) for s in result.skipped] == [
        ("0", "planned in split form"),
        ("2", "planned in split form"),
    ]
    assert fingerprint(program) == before


def test_a_frozen_weight_stays_frozen() -> None:
    program, x = program_for("conv2d", None, AimConfig(lowering="concat"))
    program.root.get_parameter("0.weight").requires_grad_(False)
    program = after(program, x, ConcatLayers)
    assert not program.root.get_parameter("0.weight").requires_grad
    assert program.root.get_parameter("2.weight").requires_grad


def test_idempotent_in_the_graph() -> None:
    program, x = program_for("conv2d", None, AimConfig(lowering="concat"))
    program = after(program, x, ConcatLayers)
    assert execute(program, torch.cat([x, x])).shape[0] == 4
    assert [str(n.target) for n in program.graphs["both"].nodes if n.op == "call_module"] == [
        "aim.memory.source",
        "0",
        "1",
        "2",
    ]
