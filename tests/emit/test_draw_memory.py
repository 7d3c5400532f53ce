"""A memory that is drawn anew is the one that a transform draws."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import aimgraph
from aimgraph.emit.draw_memory import draw_memory
from aimgraph.planning.start import start_of
from aimgraph.reproducible import generator_of, uniform
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
    draw_memory(aim, memory, made, start_of(memory))
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
    draw_memory(aim, memory, made, start_of(memory))
    different = {key for key, value in aim.state_dict().items() if not torch.equal(value, expected[key])}
    assert all(".updates." in key for key in different)  # drawn in turn, not as they are built
    for path, other in (("reads", "source"), ("source", "reads")):
        zero = not any(bool(one.any()) for one in aim.get_submodule(f"aim.memory.{path}").parameters())
        assert zero == (other == ("source" if start == "zero_reads" else "reads"))


NUMBERS = """
import hashlib, torch
from aimgraph.reproducible import generator_of, uniform
numbers = uniform((10007,), 0.1234567, generator_of("a")).numpy()
print(torch.backends.cpu.get_cpu_capability(), hashlib.sha256(numbers).hexdigest())
"""


def test_numbers_are_the_same_on_every_processor() -> None:
    """A processor that multiplies and adds in one instruction rounds once, and others twice."""
    found = {}
    for kind in ("default", "avx2", "avx512"):  # one that the processor does not have is that which it has
        done = subprocess.run(
            [sys.executable, "-c", NUMBERS],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            env=os.environ | {"ATEN_CPU_CAPABILITY": kind},
            check=True,
        )
        capability, found[kind] = done.stdout.split()
        assert kind != "default" or capability == "DEFAULT"
    assert len(set(found.values())) == 1
    bits = uniform((1000,), 0.5, generator_of("b"))
    assert torch.equal(bits, torch.empty(1000).uniform_(generator=generator_of("b")) - 0.5)
    assert 0.1 < float(uniform((1000,), 0.12).abs().max()) <= 0.12
