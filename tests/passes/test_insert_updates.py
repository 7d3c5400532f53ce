"""Updates and state in the graph."""

import pytest
import torch
from torch import Tensor, fx, nn

from aimgraph.compiler.graph_text import graph_text
from aimgraph.config import AimConfig
from aimgraph.errors import PassError
from aimgraph.passes import InsertMemory, InsertUpdates
from aimgraph.passes.insert_updates import _check_order
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.reads.view import batch_mean
from tests.passes.helpers import after, calls, execute, fingerprint, program_for, randomise_program

CHAIN = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def inserted(*configs: AimConfig, net: object = None) -> tuple[object, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(3, 4, dtype=torch.float64)
    program, x = program_for(net if net is not None else CHAIN, x, *configs)
    return after(program, x, InsertUpdates), x


def test_golden_with_state() -> None:
    program, _ = inserted(AimConfig(shape=(5,), updates=("1", "3"), carry="state"))
    kept = [line.split("  #")[0] for line in graph_text(program.graphs["both"]).splitlines() if "aim.memory" in line]
    assert kept == [
        "%aim_memory_source : [num_users=3] = call_module[target=aim.memory.source](args = (), kwargs = {})",
        "%aim_memory_carry : [num_users=2] = call_module[target=aim.memory.carry]"
        "(args = (%aim_memory_source,), kwargs = {})",
        "%aim_memory_updates_0 : [num_users=2] = call_module[target=aim.memory.updates.0]"
        "(args = (%aim_memory_carry, %_1), kwargs = {})",
        "%aim_memory_updates_1 : [num_users=2] = call_module[target=aim.memory.updates.1]"
        "(args = (%aim_memory_updates_0, %_3), kwargs = {})",
        "%aim_memory_carry_1 : [num_users=0] = call_module[target=aim.memory.carry]"
        "(args = (%aim_memory_source, %aim_memory_updates_1), kwargs = {})",
    ]


def test_each_site_reads_the_memory_as_of_its_place() -> None:
    """Written out by hand: the first layer reads the source, the others what came before them."""
    program, x = inserted(AimConfig(shape=(5,), updates=("1", "3")))
    randomise_program(program)
    root = program.root
    read = lambda i: root.get_submodule(f"aim.memory.reads.{i}")  # noqa: E731
    m0 = root.get_submodule("aim.memory.source")()
    h = torch.tanh(root.get_submodule("0")(x) + read(0)(m0))
    m1 = root.get_submodule("aim.memory.updates.0")(m0, h)
    h = torch.tanh(root.get_submodule("2")(h) + read(2)(m1))
    m2 = root.get_submodule("aim.memory.updates.1")(m1, h)
    expected = root.get_submodule("4")(h) + read(4)(m2)
    assert (execute(program, x) - expected).abs().max() < 1e-12
    assert (m1 - m2).abs().max() > 1e-3


def test_memories_without_updates_are_left_alone() -> None:
    x = torch.zeros(3, 4, dtype=torch.float64)
    program, _ = program_for(CHAIN, x)
    program = after(program, x, InsertMemory)
    before = fingerprint(program)
    result = InsertUpdates().run(program)
    assert not result.modified
    assert [(s.path, s.reason) for s in result.skipped] == [("memory", "it has no updates")]
    assert fingerprint(result.program) == before


def test_an_update_behind_a_layer_in_split_form_sees_its_memory_term() -> None:
    program, x = program_for("standardised", None, AimConfig(shape=(2, 2, 3), updates=("0",)))
    program = after(program, x, InsertUpdates)
    (update,) = calls(program, "aim.memory.updates.0")
    features = update.args[1]
    assert isinstance(features, fx.Node)
    assert features.target is accumulate
    assert list(program.graphs["both"].nodes).index(update) > list(program.graphs["both"].nodes).index(features)


def test_two_memories_keep_their_own_values() -> None:
    program, x = inserted(
        AimConfig(name="written", shape=(5,), updates=("1",)), AimConfig(name="still", shape=(3,), seed=2)
    )
    randomise_program(program)
    root = program.root
    term = lambda name, i, m: root.get_submodule(f"aim.{name}.reads.{i}")(m)  # noqa: E731
    m, s = root.get_submodule("aim.written.source")(), root.get_submodule("aim.still.source")()
    h = torch.tanh(root.get_submodule("0")(x) + term("written", 0, m) + term("still", 0, s))
    m = root.get_submodule("aim.written.updates.0")(m, h)
    h = torch.tanh(root.get_submodule("2")(h) + term("written", 2, m) + term("still", 2, s))
    expected = root.get_submodule("4")(h) + term("written", 4, m) + term("still", 4, s)
    assert (execute(program, x) - expected).abs().max() < 1e-12


def test_windows_read_the_batch_mean() -> None:
    program, x = program_for("windows", None, AimConfig(shape=(2, 2, 3), updates=("stem",)))
    program = after(program, x, InsertUpdates)
    means = calls(program, batch_mean)
    assert len(means) == 1
    assert [user.op for user in means[0].users] == ["call_method"]


def test_updates_are_per_sample() -> None:
    program, x = inserted(AimConfig(shape=(5,), updates=("1",)))
    randomise_program(program)
    together = execute(program, x)
    alone = torch.cat([execute(program, sample) for sample in x.split(1)])
    assert (together - alone).abs().max() < 1e-12


def test_a_cycle_is_refused() -> None:
    program, _ = inserted(AimConfig(shape=(5,), updates=("1",)))
    graph = program.graphs["both"]
    update = next(node for node in graph.nodes if node.target == "aim.memory.updates.0")
    last = graph.output_node().args[0]
    update.args = (update.args[0], last)
    with pytest.raises(PassError, match="updates close a cycle in the graph: "):
        _check_order(graph)
