"""What is said of checkpoints without their base, and the commands that say it."""

import json
import math
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import aimgraph
from aimgraph.checkpoint.compare import distances, mean, summary
from aimgraph.cli.main import cli
from aimgraph.errors import CheckpointError, ConfigError
from tests.nets import build, randomise, updates_for


@pytest.fixture
def two(tmp_path: Path) -> tuple[nn.Module, list[nn.Module], list[Path]]:
    base, x = build("residual")
    aims = [randomise(aimgraph.transform(base, x, shape=(2, 2, 3)), seed) for seed in (1, 2)]
    return base, aims, [aimgraph.save(aim, tmp_path / str(index)) for index, aim in enumerate(aims)]


def call(*words: object) -> str:
    done = CliRunner().invoke(cli, ["memory", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


def test_sizes_and_norms(two: tuple[nn.Module, list[nn.Module], list[Path]]) -> None:
    _, (aim, _), (folder, _) = two
    (memory,) = (found := summary(folder)).memories
    assert (found.what, found.base, memory.shape, memory.values) == ("memory", "Residual", (2, 2, 3), 12)
    assert found.bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert memory.reads == len(aimgraph.plan(aim).memories[0].reads)
    assert set(memory.norms) == {"source", "reads"}
    reads = torch.cat([t.flatten() for key, t in aim.state_dict().items() if ".reads." in key])
    assert math.isclose(memory.norms["reads"], float(reads.double().norm()), rel_tol=1e-9)
    assert memory.bytes == 4 * (12 + reads.numel())
    assert json.loads(call("list", folder, "--json"))[0]["memories"][0]["values"] == 12
    assert "2 x 2 x 3" in call("list", folder)


def test_distances(two: tuple[nn.Module, list[nn.Module], list[Path]]) -> None:
    _, aims, folders = two
    found = distances(*folders)
    key = "aim.memory.reads.down.weight"
    ours, theirs = (aim.state_dict()[key].double().flatten() for aim in aims)
    (item,) = (item for item in found if item.name == "memory.reads.down.weight")
    assert item.distance == pytest.approx(float((ours - theirs).norm()))
    assert item.norms == pytest.approx((float(ours.norm()), float(theirs.norm())))
    assert item.cosine == pytest.approx(float(torch.cosine_similarity(ours, theirs, dim=0)))
    assert all(item.distance == 0 for item in distances(folders[0], folders[0]))
    assert json.loads(call("diff", *folders, "--json"))[0]["name"] == found[0].name
    assert "memory.reads.down.weight" in call("diff", *folders)


def test_the_mean_of_two(two: tuple[nn.Module, list[nn.Module], list[Path]], tmp_path: Path) -> None:
    base, aims, folders = two
    call("merge", *folders, "--out", tmp_path / "mean")
    mixed = aimgraph.load(mean(folders, tmp_path / "mixed", [0.25, 0.75]), base).state_dict()
    halves = aimgraph.load(tmp_path / "mean", base).state_dict()
    for key, value in aims[0].state_dict().items():
        other = aims[1].state_dict()[key]
        assert torch.allclose(halves[key].double(), (value.double() + other.double()) / 2, atol=1e-6)
        assert torch.allclose(mixed[key].double(), 0.25 * value.double() + 0.75 * other.double(), atol=1e-6)


def test_others_are_refused(two: tuple[nn.Module, list[nn.Module], list[Path]], tmp_path: Path) -> None:
    base, _, folders = two
    _, x = build("residual")
    other = aimgraph.save(aimgraph.transform(base, x, shape=(2, 2, 4)), tmp_path / "other")
    for function in (lambda: distances(folders[0], other), lambda: mean([folders[0], other], tmp_path / "m")):
        with pytest.raises(CheckpointError, match=r"are not of the same make: memory\.reads\.\S+ is float32 \["):
            function()
    with pytest.raises(ConfigError, match="give two or more, and a weight for each"):
        mean(folders[:1], tmp_path / "m")
    with pytest.raises(ConfigError, match="give two or more, and a weight for each"):
        mean(folders, tmp_path / "m", [1.0])
    assert not (tmp_path / "m").exists()


def test_updates_and_state_are_counted(tmp_path: Path) -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, shape=(2, 2, 3), carry="state", **updates_for(base, x))
    aim.train()(x)
    base = aimgraph.strip(aim)  # whose statistics that step has moved
    for index in range(2):
        aimgraph.save(aim, tmp_path / str(index))
    (memory,) = summary(tmp_path / "0").memories
    assert memory.updates == len(aimgraph.plan(aim).memories[0].updates) > 0
    assert memory.norms["carry"] == pytest.approx(float(aim.state_dict()["aim.memory.carry.state"].norm()), rel=1e-5)
    again = aimgraph.load(mean([tmp_path / "0", tmp_path / "1"], tmp_path / "m"), base)
    assert torch.equal(again.eval()(x), aim.eval()(x))
