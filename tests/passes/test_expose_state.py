"""Memories become inputs and outputs of the graph; the rest stays as it is."""

from typing import Any

import pytest
import torch

import aimgraph
from aimgraph.api.fold import exposed
from aimgraph.passes.expose_state import Exposed
from tests.nets import build, randomise, updates_for


def made(kind: Any, sizes: bool = False, **options: Any) -> tuple[aimgraph.AimModule, Any, tuple[Exposed, ...]]:
    base, x = build("residual")
    if options.pop("updates", False):
        options |= {"shape": (2, 2, 3), **updates_for(base, x)}
    aim = randomise(aimgraph.transform(base.eval(), x, **options)).eval()
    keep = tuple(memory.name for memory in aimgraph.plan(aim).memories)
    module, described = exposed(aim, aim._record.inputs, kind, keep=keep, sizes=sizes)
    return aim, module, described


def targets(module: Any) -> list[str]:
    return [getattr(node.target, "__name__", str(node.target)) for node in module.graph.nodes]


def test_a_source_becomes_an_input() -> None:
    aim, module, (memory,) = made("input")
    assert memory == Exposed("memory", "input", "memory", "", 64, "any")
    assert memory.shape == (1, 64)
    assert [node.target for node in module.graph.find_nodes(op="placeholder")] == ["memory", "x"]
    assert not any("source" in name or name == "accumulate" for name in targets(module))
    assert sum("add_term" in name for name in targets(module)) == len(aimgraph.plan(aim).memories[0].reads)
    assert not any("source" in key for key in module.state_dict())
    x = torch.randn(3, 3, 8, 8)
    value = aim.get_submodule("aim.memory.source")()
    assert torch.allclose(module(value, x), aim(x), atol=1e-6)
    rows = module(torch.cat([value, value + 1, value]), x)
    assert torch.allclose(rows[::2], aim(x)[::2], atol=1e-6)
    assert not torch.allclose(rows[1], aim(x)[1], atol=1e-3)


def test_updates_end_in_an_output() -> None:
    aim, module, (memory,) = made("state", updates=True)
    assert memory == Exposed("memory", "state", "memory_in", "memory_out", 12, "batch")
    x = torch.randn(2, 3, 8, 8)
    value = aim.get_submodule("aim.memory.source")()
    output, (last,) = module(value.repeat(2, 1), x)
    assert torch.allclose(output, aim(x), atol=1e-6)
    assert last.shape == (2, 12)
    _, (again,) = module(last, x)
    assert not torch.equal(again, last)


@pytest.mark.parametrize("pool", [None, "batch"])
def test_a_carried_state_is_read_and_written(pool: str | None) -> None:
    aim, module, (memory,) = made("state", updates=True, carry="state", rate=0.25, write_in_eval=True, pool=pool)
    assert memory.rows == "none"
    assert memory.shape == (12,)
    state = torch.zeros(12)
    for seed in range(3):
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        output, (state,) = module(state, x)
        assert torch.allclose(output, aim(x), atol=1e-6)
        assert torch.allclose(state, aim.get_buffer("aim.memory.carry.state"), atol=1e-6)
    assert not any("carry" in str(node.target) for node in module.graph.nodes)


def test_of_another_kind_it_stays() -> None:
    _, module, described = made("input", updates=True)
    assert not described
    assert sum(name == "aim.memory.source" for name in targets(module)) == 1
    _, module, described = made(None, sizes=True)
    assert not described
    assert not any(name in ("fit", "accumulate") for name in targets(module))
    assert any("fit_to" in name for name in targets(module))


def test_names_that_are_taken() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Linear(4, 4)

        def forward(self, memory: torch.Tensor) -> torch.Tensor:
            return self.mix(memory)

    aim = randomise(aimgraph.transform(Net(), torch.randn(2, 4)))
    _, (memory,) = exposed(aim, aim._record.inputs, "input", keep=("memory",), sizes=False)
    assert memory.input == "memory_memory"
