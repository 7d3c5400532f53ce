import json

import pytest
import torch
from torch import Generator, nn

import aimgraph
from aimgraph.experiment.digits import digits
from aimgraph.experiment.images import Images
from aimgraph.experiment.made import squares
from benchmarks.learning.journal import Journal
from benchmarks.learning.starts import READS, Start, parameter_groups, redraw
from benchmarks.learning.train import Recipe, accuracy, fresh, shuffled, train
from benchmarks.starts_table import MANY, groups, markdown, of_many_seeds


def test_digits_of_the_test_are_not_trained_on():
    split = digits()
    assert (len(split.train), len(split.test)) == (1198, 599)
    assert split.train.pixels.aminmax() == (-1, 1)


def test_an_epoch_shows_every_image_once():
    images = Images(torch.arange(10.0).reshape(10, 1, 1, 1), torch.arange(10))
    batches = shuffled(images, 5, Generator().manual_seed(0))
    assert sorted(next(batches).labels.tolist() + next(batches).labels.tolist()) == list(range(10))


@pytest.mark.parametrize("target", [None, 0.0])
def test_training_ends_at_its_target(target):
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 16))
    test, recipe = squares(32, Generator().manual_seed(1)), Recipe(steps=6, every=2, target=target)
    batches = fresh(squares, recipe.batch, Generator().manual_seed(0))
    curve = train(model, model.parameters(), batches, lambda net: accuracy(net, test), recipe, 1e-2)
    assert (curve.steps, curve.reached) == (([2, 4, 6], None) if target is None else ([2], 2))


def test_a_hopeless_run_ends():
    recipe = Recipe(steps=100, target=0.9, hopeless=(50, 0.1))
    assert [recipe.ends(40, 0.05), recipe.ends(50, 0.05), recipe.ends(60, 0.2), recipe.ends(10, 0.95)] == [0, 1, 0, 1]


def small() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.randn(2, 1, 4, 4)


@pytest.mark.parametrize("kind", ["zero_reads", "zero_values", "zero_values, memory bound", "noise, 1/n"])
def test_a_start_changes_nothing(kind):
    (base, x), start = small(), Start(kind, 0.5)
    aim = aimgraph.transform(base, x, shape=(4, 4, 2), **start.options)
    redraw(aim, start, 0)
    assert torch.equal(aim(x), base(x))


def test_read_weights_of_another_bound():
    (base, x), start = small(), Start("zero_values, memory bound")
    aim = aimgraph.transform(base, x, shape=(4, 4, 2), **start.options)
    redraw(aim, start, 0)
    largest = aim.get_submodule(READS).get_parameter("0.weight").abs().max()
    assert 0.8 * (3 / 18) ** 0.5 < largest <= (3 / 18) ** 0.5


def test_a_factor_is_a_rate_of_the_read_weight():
    (base, x), start = small(), Start("noise, 1/n")
    aim = aimgraph.transform(base, x, shape=(4, 4, 2), **start.options)
    given = parameter_groups(aim, start, 0.1, list(aim.parameters()))
    rates = {id(one): group["lr"] for group in given for one in group["params"]}
    reads = dict(aim.get_submodule(READS).named_parameters())
    assert rates[id(reads["0.weight"])] == pytest.approx(0.1 / 18)
    assert rates[id(reads["2.weight"])] == pytest.approx(0.1 / 2)
    assert len(rates) == len(list(aim.parameters()))


def test_a_journal_goes_on_where_it_was(tmp_path):
    path = tmp_path / "runs.json"
    Journal(path, ("start", "seed"), {"steps": 1}).add({"start": "a", "seed": 0, "accuracy": 0.5})
    again = Journal(path, ("start", "seed"), {"steps": 1})
    assert {"start": "a", "seed": 0} in again
    assert {"start": "a", "seed": 1} not in again
    with pytest.raises(ValueError, match="other settings"):
        Journal(path, ("start", "seed"), {"steps": 2})


def test_a_row_of_the_table(tmp_path):
    settings = {"task": "a task", "target": None, "steps": 10}
    scores = {("a", 0.1): (0.8, 0.9), ("a", 0.2): (0.2, 0.4), ("b", 0.1): (0.95, 0.95), ("b", 0.2): (0.9, 0.9)}
    runs = [
        {"memory": "static", "start": start, "rate": rate, "seed": seed, "accuracy": [0.1, score], "reached": None}
        for (start, rate), found in scores.items()
        for seed, score in enumerate(found)
    ]
    path = tmp_path / "starts_some.json"
    path.write_text(json.dumps({"settings": settings, "runs": runs}))
    (group,) = groups(path)
    best, other = markdown(group).splitlines()[4:]
    assert best == "| b | 2 | 0.1 | 95.0 ± 0.0 | 0.2 | 90.0 | 95.0 | 90.0 |"
    assert other == "| a | 2 | 0.1 | 85.0 ± 5.0 | 0.2 | 30.0 | 85.0 (1 failed) | 30.0 (2 failed) |"


def test_a_table_of_many_seeds_leaves_out_the_cells_of_few(tmp_path):
    counts = {("a", 0.1): MANY, ("a", 0.2): MANY, ("a", 0.3): MANY - 1, ("b", 0.1): MANY, ("b", 0.2): 1}
    runs = [
        {"memory": "static", "start": start, "rate": rate, "seed": seed, "accuracy": [0.9], "reached": None}
        for (start, rate), count in counts.items()
        for seed in range(count)
    ]
    path = tmp_path / "starts_some.json"
    path.write_text(json.dumps({"settings": {"task": "a task", "target": None, "steps": 10}, "runs": runs}))
    (group,) = groups(path)
    many = of_many_seeds(group)
    assert many is not None
    assert (list(many.scores), many.grid) == (["a"], [0.1, 0.2])
