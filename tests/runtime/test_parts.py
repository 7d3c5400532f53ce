"""Sources, reads and blocks of the user's own: by name and by factory, wherever a memory goes."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph import BlockSpec, CheckpointError, ConfigError, ReadSpec, SourceSpec
from aimgraph.runtime.specs import PARTS
from tests.nets import build, randomise


class LowRank(nn.Module):
    """A source: N values as the product of two vectors."""

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(spec.size // spec.shape[-1]))
        self.channel = nn.Parameter(torch.empty(spec.shape[-1]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.place)
        nn.init.normal_(self.channel)

    def forward(self) -> Tensor:
        return torch.outer(self.place, self.channel).reshape(1, -1)


class Mixed(nn.Module):
    """A read: a learned map of all values to two channels at each place."""

    def __init__(self, spec: ReadSpec) -> None:
        super().__init__()
        self.grid = spec.grid
        self.map = nn.Linear(spec.size, 2 * spec.positions)

    def forward(self, memory: Tensor) -> Tensor:
        return self.map(memory).tanh().reshape(-1, *self.grid, 2)


class Centred(Mixed):
    """A read that mixes the rows."""

    def forward(self, memory: Tensor) -> Tensor:
        return super().forward(memory - memory.mean(0))


class Noisy(Mixed):
    """A read that draws."""

    def forward(self, memory: Tensor) -> Tensor:
        return super().forward(memory + torch.randn_like(memory))


class Added(nn.Module):
    """A block: the features' mean, mapped to N values."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        self.map = nn.Linear(spec.features, spec.size)

    def forward(self, memory: Tensor, features: Tensor) -> Tensor:
        return memory + self.map(features.flatten(2).mean(2) if features.dim() > 2 else features)


class Free(nn.Module):
    """A source whose values nothing draws anew."""

    def __init__(self, spec: SourceSpec) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(1, spec.size))

    def forward(self) -> Tensor:
        return self.value.clone()


class Branch(nn.Module):
    """Goes another way for short inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if x.shape[-2] > 3 else self.b(self.a(x))


class Decides(nn.Module):
    """Decides on values, so that it is kept as one call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) if bool((x.sum() > -1e9).item()) else x


@pytest.fixture
def registered(kept_parts: None) -> None:
    for role, factory in (("source", LowRank), ("read", Mixed), ("block", Added)):
        aimgraph.register(role, "mine", factory)


def transformed(net: str = "residual", **options: object) -> tuple[nn.Module, nn.Module, Tensor]:
    model, x = build(net)
    return model, aimgraph.transform(model, x, **({"shape": (2, 3, 2)} | options)), x


WAYS: dict[str, dict[str, object]] = {
    "source": {"source": LowRank},
    "read": {"read": Mixed},
    "block": {"updates": "stages", "block": Added},
    "gated": {"updates": "stages", "block": Added, "mode": "gated", "pool": "batch"},
    "read in the built-in block": {"updates": "stages", "read": Mixed},
    "all": {"source": LowRank, "read": Mixed, "updates": "stages", "block": Added, "carry": "state"},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_output_stays_until_it_is_trained(way: str) -> None:
    model, aim, x = transformed(**WAYS[way])
    assert torch.equal(aim.eval()(x), model.eval()(x))


def test_both_forms_read_the_same() -> None:
    _, split, x = transformed(source=LowRank, read=Mixed)
    _, concat, _ = transformed(source=LowRank, read=Mixed, lowering="concat")
    concat.load_state_dict(randomise(split).state_dict())
    torch.testing.assert_close(concat.eval()(x), split.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", ["channels_last", "functions", "sequence_first", "conv3d", "ranks", "shared"])
def test_a_read_serves_every_layout(net: str) -> None:
    model, aim, x = transformed(net, read=Mixed)
    assert torch.equal(aim(x), model(x))
    assert not torch.allclose(randomise(aim)(x), model(x))
    report = aimgraph.verify(model, aim, x)
    assert report.ok, str(report)


def test_the_plan_counts_what_is_added() -> None:
    for options in WAYS.values():
        model, aim, _ = transformed(**options)
        added = sum(p.numel() for p in aim.parameters()) - sum(p.numel() for p in model.parameters())
        views = sum(p.numel() for name, p in aim.named_parameters() if ".views." in name)
        assert aimgraph.plan(aim).added_parameters == added
        assert (views > 0) == ("read" in options)


def test_every_own_parameter_gets_a_gradient() -> None:
    _, aim, x = transformed(**WAYS["all"] | {"mode": "gated"})
    randomise(aim)(x).square().sum().backward()
    assert not [name for name, p in aim.named_parameters() if name.startswith("aim.") and p.grad is None]


def test_a_read_is_what_its_site_adds() -> None:
    _, aim, x = transformed("linear", read=Mixed)
    memory, value = randomise(aim).get_submodule("aim.memory"), aim.get_submodule("aim.memory.source")()
    seen = [memory.reads.get_submodule(site)(memory.views.get_submodule(view)(value)) for site, view in ("00", "21")]
    hidden = (aim.get_submodule("0")(x) + seen[0]).relu()
    torch.testing.assert_close(aim(x), aim.get_submodule("2")(hidden) + seen[1])


def test_a_gate_mixes_what_any_block_gives() -> None:
    """`M <- (1 - g) M + g U`, where g is the sigmoid of what a second block gives."""
    _, aim, _ = transformed("linear", updates=("0",), block=Added, mode="gated")
    update = randomise(aim).get_submodule("aim.memory.updates.0")
    memory, features = torch.randn(1, 12), torch.randn(5, 7)
    gate = torch.sigmoid(update.gate(memory.expand(5, -1), features))
    expected = (1 - gate) * memory + gate * update.block(memory.expand(5, -1), features)
    torch.testing.assert_close(update(memory, features), expected)


@pytest.mark.parametrize("way", ["source", "read", "block", "all"])
def test_copies_and_pickles_compute_the_same(way: str) -> None:
    _, aim, x = transformed(**WAYS[way])
    randomise(aim).eval()
    for other in (copy.deepcopy(aim), pickle.loads(pickle.dumps(aim))):
        assert torch.equal(other(x), aim(x))


def test_folded_is_the_same() -> None:
    _, aim, x = transformed(source=LowRank, read=Mixed)
    folded = aimgraph.fold(randomise(aim).eval())
    assert not folded.folds.left
    torch.testing.assert_close(folded(x), aim(x), rtol=1e-4, atol=1e-4)


def test_a_read_that_draws_is_not_folded() -> None:
    _, aim, _ = transformed("linear", read=Noisy)
    folded = aimgraph.fold(randomise(aim))
    assert set(folded.folds.left.values()) == {"its source or its read gives other values at each call"}
    assert any(".views." in str(node.target) for node in folded.graph.nodes)


@pytest.mark.parametrize(("read", "rows"), [(Mixed, True), (Centred, False)])
def test_each_sample_has_its_own_set(read: type[Mixed], rows: bool) -> None:
    _, aim, _ = transformed("linear", read=read)
    randomise(aim).eval()
    for name in ("b", "c"):
        aim.add_memory_set(name, share_reads=True)
        with torch.no_grad():
            aim.get_submodule(f"aim.sets.{name}.memory.source").value.normal_()
    assert aimgraph.plan(aim).memories[0].reads_rows is rows
    names, expected = ["b", "default", "c", "b"], []
    x = torch.randn(4, 5)
    for name, sample in zip(names, x.split(1), strict=True):
        with aim.using(name):
            expected.append(aim(sample))
    with aim.using(names):
        torch.testing.assert_close(aim(x), torch.cat(expected))


def test_a_new_set_is_drawn_anew() -> None:
    _, aim, x = transformed(**WAYS["all"])
    randomise(aim).eval()
    aim.add_memory_set("b")
    own = dict(aim.get_submodule("aim.sets.b.memory").named_parameters())
    for name, parameter in aim.get_submodule("aim.memory").named_parameters():
        assert not torch.equal(own[name], parameter), name
    with torch.no_grad():
        for parameter in own.values():
            parameter.normal_()
    before = aim(x)
    with aim.using("b"):
        assert not torch.allclose(aim(x), before)


def test_a_set_of_what_nothing_draws_is_refused() -> None:
    _, aim, _ = transformed("linear", source=Free)
    with pytest.raises(ConfigError, match=r"Free has the parameter 'value' and no reset_parameters\(\)"):
        aim.add_memory_set("b")


def test_the_base_itself_reads_in_the_same_way(recwarn: pytest.WarningsRecorder) -> None:
    """Where another size leads the base another way, its own forward runs with the reads added."""
    aim = randomise(aimgraph.transform(Branch(), torch.randn(2, 5, 4), shape=(12,), read=Mixed)).eval()
    short, memory = torch.randn(2, 2, 4), aim.get_submodule("aim.memory")
    view = memory.views.get_submodule("0")(memory.source())
    view = nn.functional.interpolate(view.mT, size=2, mode="linear").mT
    hidden = aim.get_submodule("a")(short) + memory.reads.get_submodule("a")(view)
    torch.testing.assert_close(aim(short), aim.get_submodule("b")(hidden))
    assert any("forward of Branch itself runs" in str(warning.message) for warning in recwarn)


def test_reads_inside_a_module_that_is_kept_as_one_call() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), Decides()), torch.randn(2, 4)
    aim = randomise(aimgraph.transform(model, x, shape=(12,), read=Mixed)).eval()
    memory, value = aim.get_submodule("aim.memory"), aim.get_submodule("aim.memory.source")()
    hidden = x
    for number, name in enumerate(["0", "1.a", "1.b"]):
        view = memory.views.get_submodule(str(number))(value)
        hidden = aim.get_submodule(name)(hidden) + memory.reads.get_submodule(name)(view)
    torch.testing.assert_close(aim(x), hidden)
    aim.add_memory_set("b")
    with torch.no_grad():
        for parameter in aim.get_submodule("aim.sets.b").parameters():
            parameter.normal_()
    with aim.using("b"):
        assert not torch.allclose(aim(x), hidden)


def by_spec(spec: SourceSpec) -> nn.Module:
    """Whichever part the spec is for."""
    return {SourceSpec: LowRank, ReadSpec: Mixed, BlockSpec: Added}[type(spec)](spec)


@pytest.mark.usefixtures("registered")
def test_saved_by_name_and_loaded_with_components(tmp_path: Path) -> None:
    model, aim, x = transformed(source="mine", read=Mixed, updates="stages", block="mine")
    randomise(aim).eval()
    aimgraph.save(aim, tmp_path)
    assert torch.equal(aimgraph.load(tmp_path, model).eval()(x), aim(x))
    _, other, _ = transformed(source=LowRank, read="mine", updates="stages", block=Added)
    aimgraph.load_memory(other, tmp_path)
    assert torch.equal(other.eval()(x), aim(x))
    for parts in PARTS.values():
        del parts["mine"]
    with pytest.raises(
        CheckpointError, match=r"made with the source 'mine', .* give load components={'mine': factory}"
    ):
        aimgraph.load(tmp_path, model)
    again = aimgraph.load(tmp_path, model, components={"mine": by_spec}).eval()
    assert torch.equal(again(x), aim(x))
    aimgraph.save(again, tmp_path / "again")
    aimgraph.register("source", "mine", LowRank)
    with pytest.raises(CheckpointError, match="made with the read 'mine'"):
        aimgraph.load(tmp_path / "again", model)


def test_a_factory_without_a_name_is_not_saved(tmp_path: Path) -> None:
    _, aim, _ = transformed("linear", read=Mixed)
    with pytest.raises(ConfigError, match=r"read is a callable .* register it with aimgraph\.register\('read', name"):
        aimgraph.save(aim, tmp_path)
    assert not list(tmp_path.iterdir())


def test_options_written_before_there_were_blocks_are_of_the_built_in_one() -> None:
    data = aimgraph.AimConfig(updates="stages").to_json()
    assert "block" not in data
    assert aimgraph.AimConfig.from_json(data) == aimgraph.AimConfig(updates="stages")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("lowering", "mine", Mixed), "role='lowering': the roles are 'source', 'read' or 'block'"),
        (("read", "resize", Mixed), "name='resize': give a name other than 'reshape' or 'resize'"),
        (("read", "", Mixed), "name='': give a name"),
        (("read", "mine", 3), "the factory of read 'mine' is a int and can't be called"),
    ],
)
def test_what_is_not_registered(given: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        aimgraph.register(*given)


def test_a_shape_is_solved_for_own_reads_and_blocks() -> None:
    model, x = build("residual")
    options = {"read": Mixed, "updates": "stages", "block": Added, "budget": 50.0}
    (memory,) = aimgraph.plan(model, x, **options).memories
    rows, cols, channels = memory.shape
    (wider,) = aimgraph.plan(model, x, **options, shape=(rows, cols, channels + 1)).memories
    limit = 50.0 * sum(p.numel() for p in model.parameters())
    assert memory.parameters <= limit < wider.parameters
