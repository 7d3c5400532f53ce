"""Functions that keep less, in the graph of a program with its memory."""

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from aimgraph.compiler.pipeline import Pipeline
from aimgraph.compiler.program import Program
from aimgraph.config import AimConfig
from aimgraph.passes import EMITTING, PLANNING, MakeLean
from aimgraph.runtime.lean.call import lean_call, lean_method
from aimgraph.runtime.lean.forms import FORMS
from aimgraph.runtime.lean.pair import lean_pair
from tests.passes.helpers import execute, fingerprint, program_for, randomise_program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act, self.head = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.act(self.norm(self.conv(x))), 2).relu()
        return self.head(torch.tanh(y).mean((2, 3)))


def lowered(net: nn.Module, x: Tensor) -> Program:
    program, _ = program_for(net.double().eval(), x, AimConfig())
    return Pipeline((*PLANNING, *EMITTING), verify="full").run(program).program


def targets(graph: fx.Graph) -> list[object]:
    return [node.target for node in graph.nodes if node.op in ("call_function", "call_method", "call_module")]


def test_modules_functions_and_methods_are_rewritten_and_nothing_else() -> None:
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    program = lowered(Net(), x)
    randomise_program(program)
    before = {name: targets(graph) for name, graph in program.graphs.items()}
    expected = execute(program, x)
    result = Pipeline((MakeLean(),), verify="full").run(program)
    assert result.modified
    graph = program.graphs["both"]
    called = [node.args[0].target for node in graph.nodes if node.target is lean_call]
    assert called == ["conv"]
    pairs = [[one.target for one in node.args[:2]] for node in graph.nodes if node.target is lean_pair]
    assert pairs == [["norm", "act"]]
    assert FORMS[F.max_pool2d] in targets(graph)
    assert [node.args[0] for node in graph.nodes if node.target is lean_method] == ["relu"]
    kept = {"head", torch.tanh, "mean", "aim.memory.source", "aim.memory.reads.conv", "aim.memory.reads.head"}
    assert kept <= set(targets(graph)) & set(before["both"])
    assert torch.equal(execute(program, x), expected)


def test_it_changes_nothing_a_second_time_and_nothing_without_such_functions() -> None:
    program = lowered(Net(), torch.randn(2, 2, 8, 8, dtype=torch.float64))
    assert MakeLean().run(program).modified
    before = fingerprint(program)
    assert not MakeLean().run(program).modified
    assert fingerprint(program) == before
    plain = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    assert not MakeLean().run(lowered(plain, torch.randn(2, 4, dtype=torch.float64))).modified


class Between(nn.Module):
    """Norms whose output somebody else reads, too, or that stand behind nothing, or before another function."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(2) for _ in range(4))
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = self.norms
        y = a(x)
        y = F.relu(y) + y
        y = torch.tanh(b(y))
        y = F.relu6(c(y))
        return self.head(F.relu(d(y), inplace=True).mean((2, 3)))


def test_a_norm_is_joined_with_an_activation_that_alone_reads_it() -> None:
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    program = lowered(Between(), x)
    randomise_program(program)
    expected = execute(program, x)
    Pipeline((MakeLean(),), verify="full").run(program)
    (graph,) = program.graphs.values()
    assert [node.args[0].target for node in graph.nodes if node.target is lean_pair] == ["norms.2", "norms.3"]
    assert [node.args[0].target for node in graph.nodes if node.target is lean_call] == ["norms.0", "norms.1"]
    assert torch.equal(execute(program, x), expected)


class Overwritten(nn.Module):
    """What the norm reads is written over before the activation is called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        y = self.norm(x)
        skip = F.relu_(x)
        return self.act(y) + skip


@torch.no_grad()
def test_a_norm_runs_before_what_writes_over_its_input() -> None:
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    program = lowered(Overwritten(), x)
    randomise_program(program)
    expected = execute(program, x)
    Pipeline((MakeLean(),), verify="full").run(program)
    assert torch.equal(execute(program, x), expected)


def test_a_module_that_is_kept_as_one_call_is_left_with_its_name() -> None:
    class Loops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            while float(x.abs().max()) > 1:
                x = x / 2
            return self.conv(x).relu()

    net = nn.Sequential(nn.Conv1d(2, 2, 1), Loops(), nn.ReLU())
    result = MakeLean().run(lowered(net, torch.randn(2, 2, 5, dtype=torch.float64)))
    assert result.modified
    assert [item.path for item in result.skipped] == ["aim._opaque.1"]
