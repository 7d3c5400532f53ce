"""A memory that is drawn anew is the one that a transform draws."""

import pytest
import torch

import aimgraph
from aimgraph.emit.draw_memory import draw_memory
from aimgraph.planning.start import start_of
from aimgraph.runtime.memory import Memory
from tests.nets import build, randomise


@pytest.mark.parametrize("start", ["zero_reads", "zero_values", "drawn"])
@pytest.mark.parametrize("name", ["residual", "transposed_grouped", "tokens", "weight_norm", "ranks"])
def test_bit_for_bit(name: str, start: str) -> None:
    base, x = build(name)
    aim = aimgraph.transform(base, x, start=start)
    expected = {key: value.clone() for key, value in aim.state_dict().items()}
    randomise(aim)
    (memory,) = aimgraph.plan(aim).memories
    made = aim.get_submodule("aim.memory")
    assert isinstance(made, Memory)
    draw_memory(aim, memory, made, start_of(memory.config))
    assert all(torch.equal(value, expected[key]) for key, value in aim.state_dict().items())


@pytest.mark.parametrize("start", ["zero_reads", "zero_values"])
def test_calls_of_functions_and_updates(start: str) -> None:
    base, x = build("functions")
    aim = aimgraph.transform(base, x, start=start, shape=(2, 2, 3), updates=("mix",), carry="state")
    expected = {key: value.clone() for key, value in aim.state_dict().items()}
    randomise(aim)
    (memory,) = aimgraph.plan(aim).memories
    made = aim.get_submodule("aim.memory")
    assert isinstance(made, Memory)
    draw_memory(aim, memory, made, start_of(memory.config))
    different = {key for key, value in aim.state_dict().items() if not torch.equal(value, expected[key])}
    assert all(".updates." in key for key in different)  # drawn in turn, not as they are built
    for path, other in (("reads", "source"), ("source", "reads")):
        zero = not any(bool(one.any()) for one in aim.get_submodule(f"aim.memory.{path}").parameters())
        assert zero == (other == ("source" if start == "zero_reads" else "reads"))
