"""Memory sets: one base, many memories; which of them is read, trained, copied and folded."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.errors import CheckpointError, ConfigError, ExampleInputError
from tests.nets import NETS, build, randomise, run, updates_for

VALUED = ["linear", "residual", "conv1d", "conv3d", "shared", "functions", "grouped", "tokens", "windows", "position"]


class Long(nn.Module):
    """Decides by a length."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x) if x.shape[1] > 2 else x - self.b(x)


def built(name: str, *, seed: int = 1, **options: Any) -> tuple[aimgraph.AimModule, Tensor]:
    base, x = build(name)
    aim = randomise(aimgraph.transform(base.eval(), x, **options), seed)
    return aim.eval(), x


def draw(aim: nn.Module, name: str, seed: int) -> None:
    """Values for everything in a set."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in aim.get_submodule(f"aim.sets.{name}").parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else next(iter(output.values() if isinstance(output, dict) else output))


@pytest.mark.parametrize("name", NETS)
def test_a_new_set_changes_nothing_and_is_a_memory_of_its_own(name: str) -> None:
    aim, x = built(name)
    base = aimgraph.strip(aim)
    with aimgraph.disable_memory(aim):
        plain = run(aim, x)
    before, keys = run(aim, x), list(aim.state_dict())
    aim.add_memory_set("other")
    assert torch.equal(run(aim, x), before)
    assert list(aim.state_dict())[: len(keys)] == keys
    with aim.using("other"):
        assert torch.equal(run(aim, x), plain)
        draw(aim, "other", 3)
        other = run(aim, x)
        assert not torch.equal(other, before)
    assert torch.equal(run(aim, x), before)
    aim.use("other")
    assert torch.equal(run(aim, x), other)
    assert torch.equal(run(aimgraph.strip(aim), x), run(base, x))
    # the same values as the default set's give the same
    for key, value in aim.state_dict().items():
        if key.startswith("aim.sets.other."):
            aim.state_dict()[key.replace("sets.other.", "")].copy_(value)
    aim.use("default")
    assert torch.equal(run(aim, x), other)


@pytest.mark.parametrize("options", [{}, {"carry": "state"}], ids=["updates", "carried"])
def test_updates_and_state_belong_to_the_set(options: dict[str, Any]) -> None:
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base, x, shape=(2, 2, 3), **updates_for(base, x), **options))
    aimgraph.freeze_base(aim)
    aim.add_memory_set("b", like="default")
    aim.train()
    before = copy.deepcopy(aim.state_dict())
    with aim.using("b"):
        first_step = aim(x)
    changed = {key for key, value in aim.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith("aim.sets.b.") for key in changed)
    assert torch.equal(aim(x), first_step)  # from the same values
    if options:
        assert any("carry.state" in key for key in changed)
        aim.reset_memory()
        assert not any(value.any() for key, value in aim.state_dict().items() if "carry.state" in key)


def test_training_one_set_leaves_the_rest() -> None:
    aim, x = built("residual")
    aimgraph.freeze_base(aim)
    aim.add_memory_set("a")
    aim.add_memory_set("b")
    aim.use("b")
    aim.train()
    before = copy.deepcopy(aim.state_dict())
    optimizer = torch.optim.AdamW(aimgraph.memory_parameters(aim), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        first(aim(x)).square().mean().backward()
        optimizer.step()
    changed = {key for key, value in aim.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("aim.sets.b.")}


def test_the_parameters_of_one_set() -> None:
    aim, _ = built("residual")
    own = list(aimgraph.memory_parameters(aim))
    aim.add_memory_set("a")
    names = {id(p): name for name, p in aim.named_parameters()}
    assert {names[id(p)] for p in aimgraph.memory_parameters(aim, "a")} == {
        n for n in names.values() if ".sets.a." in n
    }
    assert list(map(id, aimgraph.memory_parameters(aim, "default"))) == list(map(id, own))
    assert len(list(aimgraph.memory_parameters(aim))) == 2 * len(own)
    aim.add_memory_set("v", share_reads=True)
    assert [names.get(id(p), "v") for p in aimgraph.memory_parameters(aim, "v")] == ["v"]
    with pytest.raises(ConfigError, match="there is no memory set 'w'"):
        aimgraph.memory_parameters(aim, "w")


@pytest.mark.parametrize("start", ["zero_reads", "zero_values", "drawn"])
@pytest.mark.parametrize("name", ["residual", "functions"])
def test_a_fresh_set_is_drawn_as_by_a_transform(name: str, start: str) -> None:
    base, x = build(name)
    aim = aimgraph.transform(base, x, start=start)
    state = torch.get_rng_state()
    aim.add_memory_set("a")
    assert torch.equal(torch.get_rng_state(), state)
    again = aimgraph.transform(base, x, start=start)
    again.add_memory_set("a")
    for path, made in aim.get_submodule("aim.sets.a").named_parameters():
        old = aim.get_parameter(f"aim.{path}")
        assert torch.equal(made, again.get_parameter(f"aim.sets.a.{path}"))
        if not old.any():
            assert not made.any()
            continue
        assert not torch.equal(made, old)
        assert made.requires_grad
        if old.numel() > 60:
            assert 0.7 < float(made.std() / old.std()) < 1.4


@pytest.mark.parametrize("name", NETS)
def test_every_sample_its_own_set(name: str) -> None:
    aim, x = built(name)
    for index, one in enumerate(("a", "b")):
        aim.add_memory_set(one)
        draw(aim, one, index)
    wanted = {}
    for one in aim.memory_sets:
        with aim.using(one):
            wanted[one] = first(run(aim, x))
    leaf = first(x) if not isinstance(x, Tensor) else x
    size = leaf.shape[0]
    names = [aim.memory_sets[(2 * row + 1) % 3] for row in range(size)]
    if wanted["a"].shape[0] != size:
        pytest.skip("its output has no row for every sample")
    with aim.using(names):
        given = first(run(aim, x))
        state = aim.state_dict()
    for row, one in enumerate(names):
        assert torch.allclose(given[row], wanted[one][row], rtol=1e-4, atol=1e-5)
    assert list(state) == list(aim.state_dict())
    assert aim.memory_set == "default"
    assert torch.equal(first(run(aim, x)), wanted["default"])


@pytest.mark.parametrize("name", VALUED)
def test_values_alone(name: str) -> None:
    aim, x = built(name)
    before = first(run(aim, x))
    for index, one in enumerate(("a", "b")):
        aim.add_memory_set(one, share_reads=True)
        with aim.using(one):
            assert torch.equal(first(run(aim, x)), before)  # the default set's values
        draw(aim, one, index)
    memory = aimgraph.plan(aim).memories[0]
    assert sum(p.numel() for p in aimgraph.memory_parameters(aim, "a")) == memory.size
    assert not any(p.requires_grad for p in aim.get_submodule("aim.memory.reads").parameters())
    wanted = {}
    for one in aim.memory_sets:
        with aim.using(one):
            wanted[one] = first(run(aim, x))
    assert not torch.equal(wanted["a"], wanted["b"])
    names = [aim.memory_sets[(row + 1) % 3] for row in range(x.shape[0])]
    with aim.using(names):
        given = first(run(aim, x))
    for row, one in enumerate(names):
        assert torch.allclose(given[row], wanted[one][row], rtol=1e-4, atol=1e-5)


def test_values_alone_run_as_one_batch() -> None:
    aim, _ = built("residual")
    x = build("residual")[1].repeat(4, 1, 1, 1)
    for index in range(3):
        aim.add_memory_set(f"s{index}", share_reads=True)
        draw(aim, f"s{index}", index)
    names = [aim.memory_sets[row % 4] for row in range(x.shape[0])]
    calls: list[int] = []
    aim.get_submodule("stem.0").register_forward_hook(lambda _, args, __: calls.append(args[0].shape[0]))
    with aim.using(names):
        out = aim(x)
    assert calls == [x.shape[0]]
    out.square().sum().backward()
    grads = {name: aim.get_parameter(f"aim.sets.{name}.memory.source.value").grad for name in aim.memory_sets[1:]}
    assert all(grad is not None and grad.any() for grad in grads.values())
    for name in aim.memory_sets[1:]:  # each from its own samples
        aim.zero_grad()
        rows = torch.tensor([row for row, other in enumerate(names) if other == name])
        with aim.using(name):
            aim(x[rows]).square().sum().backward()
        own = aim.get_parameter(f"aim.sets.{name}.memory.source.value").grad
        assert own is not None
        assert torch.allclose(own, grads[name], rtol=1e-3, atol=1e-4 * float(own.abs().max()))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_copies_and_pickles_have_the_sets(share: bool, train: bool) -> None:
    aim, x = built("residual")
    aim.train(train)
    aim.add_memory_set("a", share_reads=share)
    draw(aim, "a", 5)
    aimgraph.freeze_base(aim)
    aim.use("a")
    wanted = aim(x)
    for made in (copy.deepcopy(aim), pickle.loads(pickle.dumps(aim)), copy.copy(aim)):
        assert made.memory_sets == ("default", "a")
        assert made.memory_set == "a"
        assert torch.equal(made(x), wanted)
        made.use("default")
        assert not torch.equal(made(x), wanted)
        assert torch.equal(aim(x), wanted)
    with aim.using(["a", "default"]):
        rows = aim(x)
        assert torch.equal(copy.deepcopy(aim)(x), rows)


def test_what_is_done_with_the_set_in_use() -> None:
    aim, x = built("residual")
    aim.add_memory_set("a")
    aim.add_memory_set("v", share_reads=True)
    draw(aim, "a", 1)
    draw(aim, "v", 2)
    for name in ("a", "v"):
        aim.use(name)
        wanted = aim(x)
        folded = aimgraph.fold(aim)
        assert torch.allclose(folded(x), wanted, rtol=1e-4, atol=1e-5)
        assert not any(".sets." in key for key in folded.state_dict())
        assert aimgraph.verify(aimgraph.strip(aim), aim, x).ok
        assert aim.memory_set == name
    with aimgraph.disable_memory(aim):
        plain = aim(x)
    assert torch.equal(plain, aimgraph.strip(aim)(x))
    with aim.using(["a", "v"]), pytest.raises(ConfigError, match="every sample has a memory set of its own"):
        aimgraph.fold(aim)
    assert torch.equal(aim(x), wanted)


def test_inputs_that_lead_elsewhere_read_the_set_in_use() -> None:
    aim = randomise(aimgraph.transform(Long(), torch.randn(2, 2, 4)))
    aim.add_memory_set("a")
    draw(aim, "a", 1)
    x = torch.randn(3, 5, 4)
    aim.use("a")
    with pytest.warns(UserWarning, match="runs for such inputs"):
        given = aim(x)
    aim.get_submodule("aim.memory").load_state_dict(aim.get_submodule("aim.sets.a.memory").state_dict())
    aim.use("default")
    assert torch.equal(aim(x), given)
    aim.use("a")
    with aimgraph.disable_memory(aim):
        assert not torch.equal(aim(x), given)


def test_inputs_that_lead_elsewhere_read_the_set_of_every_sample() -> None:
    aim = randomise(aimgraph.transform(Long(), torch.randn(2, 2, 4)))
    for index, name in enumerate("ab"):
        aim.add_memory_set(name, share_reads=True)
        draw(aim, name, index)
    x, names = torch.randn(3, 5, 4), ["b", "default", "a"]
    with pytest.warns(UserWarning, match="runs for such inputs"), aim.using(names):
        given = aim(x)
    for row, name in enumerate(names):
        with aim.using(name):
            assert torch.allclose(aim(x)[row], given[row], atol=1e-6)
    assert not torch.allclose(aim(x)[0], given[0])


@pytest.mark.parametrize("share", [False, True])
def test_parts_that_are_replaced_while_their_set_is_in_use(share: bool) -> None:
    aim, x = built("residual")
    for index, name in enumerate("ab"):
        aim.add_memory_set(name, share_reads=share)
        draw(aim, name, index)
    with aim.using("b"):
        wanted = aim(x)
    aim.use("a")
    mine, other = aim.get_submodule("aim.sets.a.memory"), aim.get_submodule("aim.sets.b.memory")
    if share:
        mine.source = other.source
    else:
        aim.get_submodule("aim.sets.a").memory = other
    assert torch.equal(aim(x), wanted)


def test_a_copy_around_the_same_parts_uses_sets_of_its_own() -> None:
    aim, x = built("residual")
    for index, name in enumerate("ab"):
        aim.add_memory_set(name)
        draw(aim, name, index)
    aim.use("a")
    wanted, other = aim(x), copy.copy(aim)
    other.use("b")
    assert not torch.equal(other(x), wanted)
    assert torch.equal(aim(x), wanted)
    replica = copy.copy(aim)
    replica._modules["aim"] = copy.deepcopy(aim._modules["aim"])  # what torch.nn.DataParallel does for each device
    with torch.no_grad():
        replica.get_submodule("aim.sets.a.memory.source").get_parameter("value").add_(1)
    assert not torch.equal(replica(x), wanted)
    assert torch.equal(aim(x), wanted)


def test_compiled() -> None:
    aim, x = built("residual")
    aim.add_memory_set("a")
    draw(aim, "a", 1)
    made = torch.compile(aim, fullgraph=True, backend="eager")
    for name in ("default", "a", "default"):
        with aim.using(name):
            assert torch.allclose(made(x), aim(x), atol=1e-6)


def test_what_is_refused() -> None:
    aim, x = built("residual")
    for name, match in (("default", "is there already"), ("1", "a letter followed by"), ("train", "has a member")):
        with pytest.raises(ConfigError, match=match):
            aim.add_memory_set(name)
    aim.add_memory_set("a")
    with pytest.raises(ConfigError, match=r"'a' is there already; the sets are \['default', 'a'\]"):
        aim.add_memory_set("a")
    with pytest.raises(ConfigError, match=r"there is no memory set 'b'; the sets are \['default', 'a'\]"):
        aim.use("b")
    with pytest.raises(ConfigError, match="none is given"), aim.using([]):
        pass
    with aim.using(["a", "a", "a"]), pytest.raises(ExampleInputError, match=r"names 3 memory sets.*has 2"):
        aim(x)
    with aim.using("a"), pytest.raises(ConfigError, match="'a' is in use"):
        aim.remove_memory_set("a")
    with pytest.raises(ConfigError, match="can't be removed"):
        aim.remove_memory_set("default")
    keys = list(aim.state_dict())
    aim.remove_memory_set("a")
    assert [key for key in keys if ".sets." not in key] == list(aim.state_dict())
    assert aim.memory_sets == ("default",)
    base, x = build("residual")
    with pytest.raises(ConfigError, match="all zero"):
        aimgraph.transform(base, x).add_memory_set("a", share_reads=True)
    with pytest.raises(ConfigError, match="has updates"):
        aimgraph.transform(base, x, **updates_for(base, x)).add_memory_set("a", share_reads=True)
    with pytest.raises(ConfigError, match="concat form"):
        aimgraph.transform(base, x, lowering="concat").add_memory_set("a")
    with pytest.raises(ConfigError, match="memory sets live"):
        aimgraph.transform(base, x, name="sets")


@pytest.mark.parametrize("name", ["use", "memory_sets", "reset_memory"])
def test_members_that_methods_would_hide(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self._modules[name](x)

    with pytest.raises(aimgraph.PlanError, match=f"members named .'{name}'., as methods"):
        aimgraph.transform(Net(), torch.randn(2, 4))


def test_all_sets_are_saved(tmp_path: Path) -> None:
    aim, x = built("residual")
    base = aimgraph.strip(aim)
    aim.add_memory_set("a")
    aim.add_memory_set("v", share_reads=True)
    draw(aim, "a", 1)
    draw(aim, "v", 2)
    aim.use("v")
    for what in ("memory", "all"):
        loaded = aimgraph.load(aimgraph.save(aim, tmp_path / what, what=what), base)
        assert isinstance(loaded, aimgraph.AimModule)
        assert loaded.memory_sets == aim.memory_sets
        assert loaded.memory_set == "v"
        assert list(loaded.state_dict()) == list(aim.state_dict())
        for name in aim.memory_sets:
            with loaded.using(name), aim.using(name):
                assert torch.equal(loaded.eval()(x), aim(x))
    swapped = copy.deepcopy(loaded)
    draw(swapped, "a", 7)
    aimgraph.load_memory(swapped, tmp_path / "memory")
    assert all(torch.equal(value, aim.state_dict()[key]) for key, value in swapped.state_dict().items())
    swapped.remove_memory_set("a")
    with pytest.raises(CheckpointError, match=r"default, a, v \(values only\), and this model has default, v"):
        aimgraph.load_memory(swapped, tmp_path / "memory")
    with pytest.raises(CheckpointError, match=r"\['default', 'a', 'v'\], and only one can be put into 'v'"):
        aimgraph.load_memory(swapped, tmp_path / "memory", memory_set="v")


def test_one_set_is_saved_and_put_anywhere(tmp_path: Path) -> None:
    aim, x = built("residual")
    base = aimgraph.strip(aim)
    wanted = {"default": aim(x)}
    for index, (name, share) in enumerate((("a", False), ("v", True))):
        aim.add_memory_set(name, share_reads=share)
        draw(aim, name, index)
        with aim.using(name):
            wanted[name] = aim(x)
    for name in aim.memory_sets:
        aimgraph.save(aim, tmp_path / name, memory_set=name)
        alone = aimgraph.load(tmp_path / name, base).eval()
        assert torch.equal(alone(x), wanted[name])
        assert not any(".sets." in key for key in alone.state_dict())
        aimgraph.load_memory(alone, tmp_path / "default")
        assert torch.equal(alone(x), wanted["default"])
    aim.add_memory_set("b")
    for name in ("default", "a"):
        aimgraph.load_memory(aim, tmp_path / name, memory_set="b")
        with aim.using("b"):
            assert torch.equal(aim(x), wanted[name])
    with aim.using("b"):
        aimgraph.load_memory(aim, tmp_path / "v")  # into the set in use
        assert torch.equal(aim(x), wanted["v"])
    aim.add_memory_set("w", share_reads=True)
    aimgraph.load_memory(aim, tmp_path / "v", memory_set="w")
    with aim.using("w"):
        assert torch.equal(aim(x), wanted["v"])
    before = copy.deepcopy(aim.state_dict())
    with pytest.raises(CheckpointError, match=r"reads\..*weight differs from the read weights that this memory set sh"):
        aimgraph.load_memory(aim, tmp_path / "a", memory_set="w")
    with pytest.raises(ConfigError, match="there is no memory set 'q'"):
        aimgraph.load_memory(aim, tmp_path / "a", memory_set="q")
    with pytest.raises(ConfigError, match="there is no memory set 'q'"):
        aimgraph.save(aim, tmp_path / "q", memory_set="q")
    assert not (tmp_path / "q").exists()
    assert all(torch.equal(value, before[key]) for key, value in aim.state_dict().items())
    for name, output in wanted.items():
        with aim.using(name):
            assert torch.equal(aim(x), output)


def test_the_last_set_that_shares_reads_gives_their_gradients_back() -> None:
    x = torch.randn(2, 8)
    aim = aimgraph.transform(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), x, start="drawn")
    reads = dict(aim.get_submodule("aim.memory.reads").named_parameters())
    reads["0.weight"].requires_grad_(False)  # the user's own choice stays

    def trained() -> list[bool]:
        return [parameter.requires_grad for parameter in reads.values()]

    before = trained()
    assert before == [False, True]
    aim.add_memory_set("own")
    aim.add_memory_set("v", share_reads=True)
    aim.add_memory_set("w", share_reads=True)
    aim.remove_memory_set("v")
    assert trained() == [False, False]  # one still shares them
    for twin in (copy.deepcopy(aim), pickle.loads(pickle.dumps(aim))):
        twin.remove_memory_set("w")
        there = twin.get_submodule("aim.memory.reads").parameters()
        assert [parameter.requires_grad for parameter in there] == before
    aim.remove_memory_set("w")
    assert trained() == before
    aim(x).sum().backward()
    assert reads["2.weight"].grad is not None
