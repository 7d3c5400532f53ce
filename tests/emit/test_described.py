"""A transformed module as `print` shows it."""

import copy

from torch import nn

import aimgraph
from tests.nets import build


def test_the_structure_of_the_base_and_a_line_on_each_memory() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, shape=(2, 2, 3), updates="stages")
    text = str(aim)
    assert text.startswith(str(base).rstrip(")").rstrip("\n"))
    assert "def forward" not in text
    added = aimgraph.plan(aim).added_parameters
    (line,) = (line for line in text.splitlines() if "memory 'memory'" in line)
    assert line.startswith("  memory 'memory': 2 x 2 x 3, read at 5 layers, written at ")
    assert line.endswith(f"+{added:,} parameters")
    assert "print(aim.code)" in text
    assert repr(aim) == text == str(copy.deepcopy(aim))


def test_sets_and_a_disabled_memory_are_told() -> None:
    base, x = build("linear")
    aim = aimgraph.transform(base, x, shape=(3,))
    assert "memory sets" not in str(aim)
    aim.add_memory_set("b")
    aim.use("b")
    assert "memory sets: default, b; in use: b" in str(aim)
    with aimgraph.disable_memory(aim):
        assert "the memory is disabled" in str(aim)
    assert "the memory is disabled" not in str(aim)


def test_a_part_is_shown_where_it_stands() -> None:
    base, x = build("linear")
    whole = aimgraph.transform(nn.Sequential(base, nn.Tanh()), x, within="0", shape=(3,))
    first, *rest = str(whole).splitlines()
    assert first == "Sequential("
    assert "    memory 'memory': 3, read at" in "\n".join(rest)
    assert rest[-2:] == ["  (1): Tanh()", ")"]
