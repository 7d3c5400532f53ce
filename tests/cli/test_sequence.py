"""Passes as text."""

from dataclasses import dataclass

import pytest

import aimgraph
from aimgraph.cli.sequence import sequence
from aimgraph.compiler.program import BasePass, PassResult, Program
from aimgraph.passes import EMITTING, PLANNING, WidenChannels


@dataclass(frozen=True)
class Own(BasePass):
    depth: int = 1

    def run(self, program: Program) -> PassResult:
        return PassResult(program, modified=False)


def test_widening_and_a_memory() -> None:
    found = sequence('widen{parameters=1.5, how="zero"},memory{shape=(7,7,4)}')
    assert found.passes == (WidenChannels(parameters=1.5, how="zero"), *PLANNING, *EMITTING)
    assert [config.shape for config in found.configs] == [(7, 7, 4)]


def test_spaces_dicts_and_passes_of_ones_own() -> None:
    found = sequence(" widen{widths={'conv*': 1.5, 're:fc{1}': 3}} , tests.cli.test_sequence:Own{depth=2}, memory ")
    assert found.passes == (WidenChannels({"conv*": 1.5, "re:fc{1}": 3}), Own(2), *PLANNING, *EMITTING)
    assert found.configs == (aimgraph.AimConfig(),)


def test_two_memories_are_inserted_together() -> None:
    found = sequence('memory{name="a"},memory{name="b", shape=(4,)}')
    assert found.passes == (*PLANNING, *EMITTING)
    assert [config.name for config in found.configs] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("widen{parameters=1.5", "a closing brace is wanted"),
        ("widen{parameters=}", "can't be read"),
        ("widen{1.5}", "options have names"),
        ("widen{**x}", "options have names"),
        ("widen{parameters=f(3)}", "can't be read"),
        ("widen{parameter=1.5}", "widen: .*unexpected keyword argument 'parameter'"),
        ("wide", "'wide' is neither widen, memory nor package.module:Pass"),
        ("no.such:Pass", "no.such:Pass can't be imported"),
        ("tests.cli.test_sequence:Nothing", "can't be imported"),
        ("widen memory", "a comma is wanted at 'memory'"),
        (",", "a name is wanted"),
        ("memory{shap=(3,)}", "shap"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(aimgraph.ConfigError, match=message):
        sequence(text)
