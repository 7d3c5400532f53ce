"""Programs at a given stage, run as they stand."""

import itertools

import torch
from torch import Tensor, fx, nn

from aimgraph.compiler.pipeline import Pipeline
from aimgraph.compiler.program import Pass, Program
from aimgraph.config import AimConfig
from aimgraph.passes import EMITTING, PLANNING
from aimgraph.tracing.frontend import build_program
from tests.nets import build


def program_for(net: str | nn.Module, x: Tensor | None = None, *configs: AimConfig) -> tuple[Program, Tensor]:
    """A traced program in float64 of a named or given network."""
    if isinstance(net, str):
        net, x = build(net, torch.float64)
    assert x is not None
    return build_program(net, ((x,), {}), configs or (AimConfig(),), share=False), x


def after(program: Program, x: Tensor, last: type[Pass]) -> Program:
    """The program after every pass up to and including `last`, fully verified in between."""
    steps = (*PLANNING, *EMITTING)
    count = next(i for i, step in enumerate(steps) if isinstance(step, last)) + 1
    return Pipeline(steps[:count], verify="full").run(program).program


def planned(net: str | nn.Module, x: Tensor | None = None, **options: object) -> tuple[Program, Tensor]:
    """A program after planning, with one memory."""
    program, x = program_for(net, x, AimConfig(**options))
    return Pipeline(PLANNING, verify="full").run(program).program, x


def execute(program: Program, x: Tensor, graph: str = "both") -> Tensor:
    """What the program's graph computes as it stands."""
    module = fx.GraphModule(program.root, program.graphs[graph])
    output = module(x)
    assert isinstance(output, Tensor)
    return output


def randomise_program(program: Program, seed: int = 1) -> None:
    """Random values for everything below ``aim``, in the order of its names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(program.root.named_parameters()):
            if name.startswith("aim."):
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)


def fingerprint(program: Program) -> tuple[str, tuple[tuple[str, float], ...]]:
    """The printed graphs and a sum over every tensor: what `modified` has to be true to."""
    graphs = "\n".join(str(graph) for graph in program.graphs.values())
    tensors = itertools.chain(program.root.named_parameters(), program.root.named_buffers())
    return graphs, tuple((name, float(tensor.detach().double().sum())) for name, tensor in tensors)


def calls(program: Program, target: object, graph: str = "both") -> list[fx.Node]:
    """The nodes that call `target`."""
    return [node for node in program.graphs[graph].nodes if node.target == target]
