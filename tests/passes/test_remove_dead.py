"""Inserted nodes that nothing uses."""

import torch
from torch import Tensor, nn

from aimgraph.config import AimConfig
from aimgraph.passes import InsertUpdates, RemoveDead, SplitConcat
from tests.passes.helpers import after, calls, execute, fingerprint, program_for, randomise_program


def test_views_of_the_source_that_moved_on_are_removed() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2)).double()
    net.insert(2, nn.Unflatten(1, (1, 4)))
    x = torch.randn(2, 3, dtype=torch.float64)
    program, x = program_for(net, x, AimConfig(shape=(5,), updates=("1",)))
    program = after(program, x, SplitConcat)
    randomise_program(program)
    expected = execute(program, x)
    views = len(calls(program, "reshape"))
    result = RemoveDead().run(program)
    assert result.modified
    assert len(calls(program, "reshape")) < views
    assert torch.equal(execute(program, x), expected)
    before = fingerprint(program)
    assert not RemoveDead().run(program).modified
    assert fingerprint(program) == before


def test_writes_of_the_state_and_side_effects_of_the_base_stay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.head = nn.Linear(3, 3), nn.Linear(3, 2)
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.mix(x)
            self.seen.add_(y.detach().mean(0))  # a node without users
            return self.head(torch.tanh(y))

    program, x = program_for(Net(), torch.randn(2, 3), AimConfig(shape=(4,), updates=("mix",), carry="state"))
    program = after(program, x, InsertUpdates)
    RemoveDead().run(program)
    graph = program.graphs["both"]
    assert len(calls(program, "aim.memory.carry")) == 2
    assert [node.target for node in graph.nodes if node.op == "call_method" and node.target == "add_"] == ["add_"]
