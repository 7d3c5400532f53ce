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


def with_sets(seed: int, *more: str, within: str | None = None) -> nn.Module:
    """A module, or a larger one with a part, with a set of its own read weights, one without, and more of that kind."""
    base, x = build("residual")
    whole = base if within is None else nn.Sequential(nn.Identity(), base)
    aim = aimgraph.transform(whole, x, shape=(2, 2, 3), within=within)
    part = randomise(aim if within is None else aim.get_submodule(within), seed)
    part.add_memory_set("own")
    for index, name in enumerate(("shared", *more)):
        part.add_memory_set(name, share_reads=True)
        with torch.no_grad():
            part.get_parameter(f"aim.sets.{name}.memory.source.value").fill_(seed + index)
    with torch.no_grad():
        for parameter in aimgraph.memory_parameters(part, "own"):
            parameter.fill_(seed)
    return aim


@pytest.mark.parametrize("within", [None, "1"])
def test_every_set_is_listed(within: str | None, tmp_path: Path) -> None:
    aim = with_sets(2, "more", within=within)
    aimgraph.save(aim, tmp_path / "a")
    found = {memory.memory_set: memory for memory in summary(tmp_path / "a").memories}
    assert list(found) == ["default", "own", "shared", "more"]
    assert {memory.part for memory in found.values()} == {within or ""}
    assert found["own"].reads == found["default"].reads > 0
    assert found["own"].bytes == found["default"].bytes
    assert found["own"].norms["reads"] != found["default"].norms["reads"]
    assert (found["shared"].reads, found["shared"].bytes, set(found["shared"].norms)) == (0, 48, {"source"})
    for name, value in (("own", 2), ("shared", 2), ("more", 3)):
        assert found[name].norms["source"] == pytest.approx(value * math.sqrt(12))
    text = call("list", tmp_path / "a")
    assert [text.count(f" {name} ") for name in found] == [1, 1, 1, 1]
    (listed,) = json.loads(call("list", tmp_path / "a", "--json"))
    assert [item["memory_set"] for item in listed["memories"]] == [*found]


def test_every_set_is_compared(tmp_path: Path) -> None:
    """Of a set that one of the two has, the other's columns are empty."""
    for folder, aim in (("a", with_sets(2)), ("b", with_sets(2)), ("c", with_sets(2, "more"))):
        aimgraph.save(aim, tmp_path / folder)
    assert all(item.distance == 0 for item in distances(tmp_path / "a", tmp_path / "b"))
    other = with_sets(2)
    with torch.no_grad():
        other.get_parameter("aim.sets.shared.memory.source.value").add_(1)
        other.get_parameter("aim.sets.own.memory.reads.down.weight").add_(1)
    aimgraph.save(other, tmp_path / "d")
    moved = [item.name for item in distances(tmp_path / "a", tmp_path / "d") if item.distance]
    assert moved == ["sets.own.memory.reads.down.weight", "sets.shared.memory.source.value"]
    for folders, norms in (("ac", (None, 3 * math.sqrt(12))), ("ca", (3 * math.sqrt(12), None))):
        *alike, last = distances(*(tmp_path / folder for folder in folders))
        assert all(item.distance == 0 for item in alike)
        assert (last.name, last.distance, last.cosine) == ("sets.more.memory.source.value", None, None)
        assert [norm and pytest.approx(norm) for norm in norms] == list(last.norms)
        assert "sets.more.memory.source.value" in call("diff", *(tmp_path / folder for folder in folders))


def test_the_mean_is_that_of_every_set(tmp_path: Path) -> None:
    for folder, aim in (("a", with_sets(2)), ("b", with_sets(4)), ("c", with_sets(2, "more"))):
        aimgraph.save(aim, tmp_path / folder)
    base, _ = build("residual")
    again = aimgraph.load(mean([tmp_path / "a", tmp_path / "b"], tmp_path / "m"), base)
    assert again.memory_sets == ("default", "own", "shared")
    assert all(bool((parameter == 3).all()) for parameter in aimgraph.memory_parameters(again, "own"))
    assert all(bool((parameter == 3).all()) for parameter in aimgraph.memory_parameters(again, "shared"))
    with pytest.raises(CheckpointError, match=r"not of the same make: sets\.more\.\S+ is not there in"):
        mean([tmp_path / "a", tmp_path / "c"], tmp_path / "n")
