"""Rows of a picture: trees, lines and ribbons."""

import pytest
import torch
from torch import nn

import aimgraph
from aimgraph.planning.flow import Step
from aimgraph.planning.gutter import EDGE, gutter
from aimgraph.planning.lanes import HEIGHT, lanes_of, ribbon_points
from aimgraph.planning.rows import rows_of
from aimgraph.planning.tree import MOST, Node, tree_of
from tests.nets import NETS, build


def layer(path: str, *inputs: int, shape: tuple[int, ...] = (-1, 4, 8, 8)) -> Step:
    return Step("layer", path, "Conv2d", shape, inputs, (path,), (path.replace(".", "_"),))


def leaves(node: Node) -> list[Node]:
    return [leaf for child in node.children for leaf in (leaves(child) if child.children else [child])]


def labels(node: Node) -> list[str]:
    return [child.label for child in node.children]


def test_modules_fold_their_layers_and_single_ones_are_joined() -> None:
    steps = [layer("stem.conv"), layer("body.0.a", 0), layer("body.0.b", 1), layer("body.1.a", 2), layer("head", 3)]
    steps += [layer("head_2", 3)]
    root = tree_of(steps)
    assert labels(root) == ["stem.conv", "body", "head", "head_2"]
    body = root.children[1]
    assert labels(body) == ["body.0", "body.1.a"]
    assert body.open, "four rows are too few to show"
    assert not body.children[0].open
    assert [leaf.step for leaf in leaves(root)] == [0, 1, 2, 3, 4, 5]


def test_a_module_that_runs_twice_is_there_twice() -> None:
    root = tree_of([layer("a.x"), layer("a.y"), layer("b"), layer("a.x"), layer("a.y")])
    assert labels(root) == ["a", "b", "a"]


def test_many_siblings_are_folded_by_the_size_of_what_they_give() -> None:
    sizes = [64] * 60 + [32] * 60 + [16] * 3
    root = tree_of([layer(str(i), *([i - 1] if i else []), shape=(-1, 4, size, size)) for i, size in enumerate(sizes)])
    assert [leaf.step for leaf in leaves(root)] == list(range(123))
    todo = [root]
    while todo:
        node = todo.pop()
        assert len(node.children) <= MOST
        todo += node.children
    (*_, last) = root.children
    assert last.label == "120 … 122"


def test_updates_stand_behind_what_they_read() -> None:
    steps = [layer("a.x"), layer("a.y", 0), layer("b", 1)]
    root = tree_of(steps, [(1, "memory", 1)])
    assert labels(root) == ["a", "update 1", "b"]
    inside = tree_of(steps, [(0, "memory", 1)])
    assert labels(inside.children[0]) == ["x", "update 1", "y"]


def test_lines_follow_the_spine_or_bend_around_it() -> None:
    steps = [layer("a"), layer("b", 0), Step("join", "add", "add", (), (0, 1)), layer("c", 2)]
    root = tree_of(steps)
    lines = gutter(root, steps)
    a, b, add, c = (lines[id(node)] for node in root.children)
    assert a.x == b.x == add.x == c.x > EDGE, "one column is left of the spine"
    down = ((b.x, 0.0), (b.x, 0.5))
    assert down in b.always
    passes = [stroke for stroke in b.always if stroke[0][1] == 0.0 and stroke[-1][1] == 1.0]
    assert passes == [((EDGE, 0.0), (EDGE, 1.0))], "the edge from a to add passes b"
    assert any(len(stroke) == 4 and stroke[-1] == (EDGE, 1.0) for stroke in a.always)
    assert any(len(stroke) == 4 and stroke[-1] == (EDGE, 0.0) for stroke in add.always)
    assert not any(len(stroke) == 4 for stroke in c.always)


def test_rows_inside_a_module_let_the_edges_around_it_pass() -> None:
    steps = [layer("a"), layer("m.x", 0), layer("m.y", 1), layer("b", 0, 2)]
    root = tree_of(steps)
    lines = gutter(root, steps)
    module = root.children[1]
    for child in module.children:
        assert ((EDGE, 0.0), (EDGE, 1.0)) in lines[id(child)].always
    assert lines[id(module)].opened, "what is outside of the module is taken by its first layer"


@pytest.mark.parametrize("name", list(NETS))
def test_every_layer_of_a_plan_is_in_its_rows(name: str) -> None:
    base, x = build(name)
    plan = aimgraph.plan(base, x)
    rows = rows_of(plan)
    assert len({row.key for row in rows}) == len(rows)
    shown = {path for row in rows for path in row.layers}
    assert shown >= {read.site for _, read in plan.reads}
    singles: dict[str, float] = {}
    for row in rows:
        if row.kind == "layer" and row.layers[0] not in singles:
            singles[row.layers[0]] = sum(ribbon.weight for ribbon in row.ribbons)
    assert sum(singles.values()) == sum(read.parameters for _, read in plan.reads)
    assert all(0 < ribbon.share <= 1 for row in rows for ribbon in row.ribbons)


def test_values_change_where_an_update_stands() -> None:
    base, x = build("residual")
    plan = aimgraph.plan(base, x, updates="stages")
    rows = rows_of(plan)
    updates = [row for row in rows if row.kind == "update"]
    assert [row.update for row in updates] == [(0, i) for i in range(1, len(plan.memories[0].updates) + 1)]
    reads = {read.site: read.calls[0].value for _, read in plan.reads}
    for row in rows:
        if row.kind == "layer":
            assert row.values[0] == (reads[row.layers[0]],) * 2


def test_norms_of_a_module_add_up_as_those_of_one_vector() -> None:
    base = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), nn.Linear(4, 2))
    plan = aimgraph.plan(base, torch.randn(2, 4))
    weights = {("memory", "0.0"): 3.0, ("memory", "0.1"): 4.0, ("memory", "1"): 1.0}
    (group,) = (row for row in rows_of(plan, weights) if row.kind == "group")
    assert group.ribbons[0].weight == 5.0


def test_ribbons_of_one_row_stay_in_their_bands() -> None:
    base, x = build("residual")
    configs = [aimgraph.AimConfig(name=name, shape=(2, 2, 1)) for name in ("one", "other")]
    plan = aimgraph.plan(base, x, config=configs)
    lanes = lanes_of(plan)
    row = next(row for row in rows_of(plan) if len(row.ribbons) == 2)
    for place, ribbon in enumerate(row.ribbons):
        heights = [y for _, y in ribbon_points(lanes, ribbon, place, 2)]
        assert place * HEIGHT / 2 - 1e-9 <= min(heights) < max(heights) <= (place + 1) * HEIGHT / 2 + 1e-9
