"""save, load and load_memory: bit for bit, onto the right base only, with nothing half done."""

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.checkpoint import tensor_files
from aimgraph.checkpoint.entries import What
from aimgraph.emit.module import AimModule
from aimgraph.errors import CheckpointError, ConfigError, PlanError
from tests.nets import NETS, TwoInputs, build, randomise, run, updates_for

OPTIONS: dict[str, dict[str, object]] = {
    "split": {},
    "concat": {"lowering": "concat"},
    "updates": {"updates": "stages", "carry": "state", "shape": (2, 2, 3)},
}


def made(name: str, option: str, seed: int = 1) -> tuple[nn.Module, nn.Module, Tensor]:
    """The base, the same with a memory that has been at work, and an input."""
    base, x = build(name)
    options = dict(OPTIONS[option])
    if "updates" in options:
        options |= updates_for(base, x)
    aim = randomise(aimgraph.transform(base, x, **options), seed)
    run(aim.train(), x)  # running statistics and carried state
    return base, aim.eval(), x


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", NETS)
def test_all_comes_back_bit_for_bit(name: str, option: str, tmp_path: Path) -> None:
    base, aim, x = made(name, option)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    aimgraph.save(aim, tmp_path / "all", what="all")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = aimgraph.load(tmp_path / "all", base)
    assert same(loaded, aim)
    assert list(before) == list(base.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    for mode in (False, True):
        for module in (aim, loaded):
            module.train(mode)
        assert torch.equal(run(loaded, x), run(aim, x))
    assert aimgraph.plan(loaded).memories == aimgraph.plan(aim).memories


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["residual", "linear", "functions", "functional_dropout"])
def test_a_memory_comes_back_and_is_swapped(name: str, option: str, tmp_path: Path) -> None:
    base, x = build(name)
    options = dict(OPTIONS[option]) | (updates_for(base, x) if option == "updates" else {})
    first, second = (randomise(aimgraph.transform(base.eval(), x, **options), seed) for seed in (1, 2))
    for index, aim in enumerate((first, second)):
        aim.reset_memory()
        aimgraph.save(aim, tmp_path / str(index))
    loaded = aimgraph.load(tmp_path / "0", base)
    assert same(loaded, first)
    tensors = {key: id(tensor) for key, tensor in loaded.named_parameters()}
    graph = loaded._record.graphs  # type: ignore[union-attr]
    aimgraph.load_memory(loaded, tmp_path / "1")
    assert same(loaded, second)
    assert torch.equal(run(loaded, x), run(second, x))
    assert {key: id(tensor) for key, tensor in loaded.named_parameters()} == tensors
    assert loaded._record.graphs is graph  # type: ignore[union-attr]
    size = sum(file.stat().st_size for file in (tmp_path / "0").iterdir())
    values = sum(tensor.numel() for key, tensor in first.state_dict().items() if key.startswith("aim."))
    assert size < 4 * values + 60_000


def test_what_one_asked_for_is_remembered(tmp_path: Path) -> None:
    base, x = build("residual")
    asked = aimgraph.AimConfig(name="notes", sites="re:stem.*|down", exclude="stem.9*", budget=0.5)
    with pytest.raises(PlanError, match="matches nothing"):
        aimgraph.transform(base, x, config=asked)
    asked = aimgraph.AimConfig(name="notes", sites="re:stem.*|down", exclude="stem.?", budget=0.5)
    aim = aimgraph.transform(base, x, config=asked)
    loaded = aimgraph.load(aimgraph.save(aim, tmp_path), base)
    assert aimgraph.plan(loaded).memories[0].config == asked
    assert [read.site for read in aimgraph.plan(loaded).memories[0].reads] == ["down"]


def test_a_callable_choice_comes_back_as_what_it_chose(tmp_path: Path) -> None:
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base, x, sites=lambda path, _: path.startswith("block")))
    loaded = aimgraph.load(aimgraph.save(aim, tmp_path), base)
    assert same(aim, loaded)


def test_two_memories_and_inputs_of_all_kinds(tmp_path: Path) -> None:
    base = TwoInputs()
    inputs = ((torch.randn(2, 3, 6, 6),), {"vector": torch.randn(2, 5), "scale": 0.1, "mask": None})
    configs = [aimgraph.AimConfig(name="a", shape=(5,)), aimgraph.AimConfig(name="b", shape=(3, 3, 1))]
    aim = randomise(aimgraph.transform(base, inputs, config=configs))
    loaded = aimgraph.load(aimgraph.save(aim, tmp_path), base)
    args, kwargs = inputs
    ours, theirs = aim(*args, **kwargs), loaded(*args, **kwargs)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert same(aim, loaded)


class Lengths(nn.Module):
    """Decides by the numbers of an input, and takes an object of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor, lengths: Tensor, scale: Any = None) -> Tensor:
        y = self.mix(x)
        mask = torch.arange(y.shape[1], device=y.device)[None] < lengths[:, None]
        return (y * mask[..., None]).sum(1) * (1 if scale is None else scale.value)


class Scale:
    value = 2.0


def test_numbers_of_inputs_are_remembered_and_objects_asked_for(tmp_path: Path) -> None:
    base, x, lengths = Lengths(), torch.randn(2, 6, 4), torch.tensor([3, 5])
    aim = randomise(aimgraph.transform(base, (x, lengths)))
    loaded = aimgraph.load(aimgraph.save(aim, tmp_path / "a"), base)
    assert torch.equal(loaded._record.inputs[0][1], lengths)  # type: ignore[union-attr]
    assert torch.equal(loaded(x, lengths), aim(x, lengths))
    odd = randomise(aimgraph.transform(base, (x, lengths, Scale())))
    aimgraph.save(odd, tmp_path / "b")
    with pytest.raises(CheckpointError, match="of a kind that no file can hold: give them to load as example_inputs"):
        aimgraph.load(tmp_path / "b", base)
    loaded = aimgraph.load(tmp_path / "b", base, (x, lengths, Scale()))
    assert torch.equal(loaded(x, lengths, Scale()), odd(x, lengths, Scale()))


def test_parts_of_a_model(tmp_path: Path) -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "b": nn.Sequential(nn.Linear(4, 2))})

    x = torch.zeros(2, 4)
    whole = aimgraph.transform(aimgraph.transform(model(), x, within="a"), x, within="b")
    randomise(whole["a"]), randomise(whole["b"])
    aimgraph.save(whole, tmp_path)
    loaded = aimgraph.load(tmp_path, model())
    assert same(loaded, whole)
    assert isinstance(loaded["a"], AimModule)
    assert isinstance(loaded["b"], AimModule)
    one = aimgraph.transform(model(), x, within="a")
    with pytest.raises(CheckpointError, match="it holds memories of a, b, and this model has them in a"):
        aimgraph.load_memory(one, tmp_path)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("what", ["memory", "all"])
def test_of_a_wrapped_model_what_is_wrapped_is_saved(wrapper: str, what: What, tmp_path: Path) -> None:
    _, aim, x = made("residual", "split")
    base = aimgraph.strip(aim)
    aimgraph.save(WRAPPERS[wrapper](aim), tmp_path / "wrapped", what=what)
    aimgraph.save(aim, tmp_path / "plain", what=what)
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "wrapped" / file.name).read_bytes()
    assert torch.equal(aimgraph.load(tmp_path / "wrapped", base).eval()(x), aim.eval()(x))
    other = aimgraph.transform(base, x)
    aimgraph.load_memory(WRAPPERS[wrapper](other), tmp_path / "wrapped")
    assert torch.equal(other.eval()(x), aim(x))
    with pytest.raises(ConfigError, match=r"wrapped in .*: load onto what is wrapped, then wrap the result"):
        aimgraph.load(tmp_path / "wrapped", WRAPPERS[wrapper](base))


def test_a_wrapped_submodule_is_refused(tmp_path: Path) -> None:
    _, aim, _ = made("residual", "split")
    whole = nn.Sequential(nn.Identity(), nn.DataParallel(aim))
    with pytest.raises(CheckpointError, match=r"the submodule '1' is wrapped in DataParallel.*put what it wraps in"):
        aimgraph.save(whole, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    with pytest.raises(aimgraph.PlanError, match="this int has no memory"):
        aimgraph.save(3, tmp_path / "there")


def test_what_load_is_given_in_place_of_a_base(tmp_path: Path) -> None:
    base, aim, _ = made("residual", "split")
    aimgraph.save(aim, tmp_path)
    with pytest.raises(ConfigError, match=r"is transformed already: aimgraph\.load_memory\(aim, folder\) gives"):
        aimgraph.load(tmp_path, aim)
    with pytest.raises(ConfigError, match=r"load\(folder, base\) takes the folder of a checkpoint first"):
        aimgraph.load(base, tmp_path)


def test_frozen_and_disabled_stay_so(tmp_path: Path) -> None:
    base, x = build("residual")
    aim = aimgraph.freeze_base(randomise(aimgraph.transform(base, x)))
    loaded = aimgraph.load(aimgraph.save(aim, tmp_path / "a"), base)
    ours, theirs = (
        {key: tensor.requires_grad for key, tensor in module.named_parameters()} for module in (aim, loaded)
    )
    assert ours == theirs
    assert not loaded.train().stem.training
    aimgraph.disable_memory(aim)
    loaded = aimgraph.load(aimgraph.save(aim, tmp_path / "b"), base)
    assert torch.equal(loaded.eval()(x), base.eval()(x))
    aimgraph.enable_memory(loaded)
    assert not torch.equal(loaded(x), base(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base, x)).to(dtype)
    aimgraph.save(aim, tmp_path)
    loaded = aimgraph.load(tmp_path, copy.deepcopy(base).to(dtype))
    assert same(loaded, aim)
    with pytest.raises(CheckpointError, match=r"stem\.0: weight is (b?float\d+) in the checkpoint's base and float32"):
        aimgraph.load(tmp_path, base)


def test_a_memory_of_another_dtype_than_its_base(tmp_path: Path) -> None:
    base, x = build("linear")
    aim = randomise(aimgraph.transform(base, x))
    aim.aim.double()
    aimgraph.save(aim, tmp_path)
    loaded = aimgraph.load(tmp_path, base)
    assert same(loaded, aim)
    assert loaded.aim.memory.source.value.dtype is torch.float64
    other = aimgraph.transform(base, x)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointError, match=r"is torch\.float64, and here it is torch\.float32: convert this model"):
        aimgraph.load_memory(other, tmp_path)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_another_base_is_told_by_its_first_layers(tmp_path: Path) -> None:
    def network(width: int, tail: bool = False) -> nn.Module:
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, width, 1)]
        return nn.Sequential(*layers, *([nn.Conv2d(width, 2, 1)] if tail else []))

    x = torch.zeros(2, 3, 5, 5)
    aim = aimgraph.transform(network(6), x)
    aimgraph.save(aim, tmp_path)
    with pytest.raises(CheckpointError) as told:
        aimgraph.load(tmp_path, network(8, tail=True))
    lines = str(told.value).split("\n")
    assert lines[1] == (
        "  2: weight is [6, 4, 1, 1] in the checkpoint's base and [8, 4, 1, 1] in this one, "
        "bias is [6] in the checkpoint's base and [8] in this one"
    )
    assert lines[2] == "  3: weight [2, 8, 1, 1] is only in this one, bias [2] is only in this one"
    with pytest.raises(CheckpointError, match="only in the checkpoint's base"):
        aimgraph.load(tmp_path, network(6)[:2])
    with pytest.raises(CheckpointError, match="made with another base"):
        aimgraph.load_memory(aimgraph.transform(network(8), x), tmp_path)


def test_a_layer_of_other_strides_is_no_other_base_by_shapes_but_by_its_reads(tmp_path: Path) -> None:
    def network(stride: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride=stride), nn.Conv2d(4, 2, 1))

    x = torch.zeros(2, 3, 9, 9)
    aimgraph.save(aimgraph.transform(network(1), x, shape=(4, 4, 2)), tmp_path)
    with pytest.raises(CheckpointError, match=r"was read at 1 with 1 channels on \[7, 7\].*and here at 1 with 2 on"):
        aimgraph.load(tmp_path, network(2))


def test_other_weights_are_told(tmp_path: Path) -> None:
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base, x))
    aimgraph.save(aim, tmp_path / "memory")
    aimgraph.save(aim, tmp_path / "all", what="all")
    other, _ = build("residual", seed=1)
    with pytest.warns(UserWarning, match=r"saved with other weights of Residual: 9 of 19 tensors differ, the first"):
        loaded = aimgraph.load(tmp_path / "memory", other)
    assert torch.equal(loaded.down.weight, other.down.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(aimgraph.load(tmp_path / "all", other), aim)


def test_other_options_are_told(tmp_path: Path) -> None:
    base, x = build("residual")
    options: dict[str, Any] = {"shape": (2, 2, 2), "updates": "stages"}
    aimgraph.save(aimgraph.transform(base, x, **options, pool="batch"), tmp_path)
    with pytest.raises(CheckpointError, match="memory 'memory' has pool='batch', and here it has pool=None"):
        aimgraph.load_memory(aimgraph.transform(base, x, **options), tmp_path)
    with pytest.raises(
        CheckpointError, match=r"its memories are \['memory'\], and those of this model are \['other'\]"
    ):
        aimgraph.load_memory(aimgraph.transform(base, x, name="other"), tmp_path)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    base, x = build("linear")
    aim = aimgraph.transform(base, x)
    with pytest.raises(ConfigError, match='save takes what="values", what="memory", what="trainable" or what="all"'):
        aimgraph.save(aim, tmp_path, what="base")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="has no memory"):
        aimgraph.save(base, tmp_path)
    aimgraph.save(aim, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with torch.no_grad():
        aim.aim.memory.source.value[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"1 of the \d+ values of aim\.memory\.source\.value are not a number"):
        aimgraph.save(aim, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="can't be written"):
        aimgraph.save(aimgraph.transform(base, x), tmp_path / "file")


class Counted(nn.Sequential):
    """Keeps something else than tensors in its state dict."""

    def get_extra_state(self) -> Any:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"steps": 3}


def test_a_state_dict_of_more_than_tensors(tmp_path: Path) -> None:
    base, x = Counted(nn.Linear(4, 4)), torch.zeros(2, 4)
    aim = randomise(aimgraph.transform(base, x))
    with pytest.raises(CheckpointError, match=r"_extra_state of the base's state dict is a dict and no tensor"):
        aimgraph.save(aim, tmp_path, what="all")
    assert not list(tmp_path.iterdir())
    loaded = aimgraph.load(aimgraph.save(aim, tmp_path), base)
    assert torch.equal(loaded(x), aim(x))


@pytest.mark.parametrize("at", ["save_file", "_sync", "file_sha256"])
def test_a_failed_save_leaves_the_old_checkpoint(at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, x = build("linear")
    aimgraph.save(randomise(aimgraph.transform(base, x)), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(tensor_files, at, fail)
    with pytest.raises(CheckpointError, match="the checkpoint can't be written: no space left"):
        aimgraph.save(randomise(aimgraph.transform(base, x), seed=2), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


KILLED = """
    import os, signal, sys, torch
    from pathlib import Path
    import aimgraph
    from tests.nets import build, randomise
    base, x = build("linear")
    aim = randomise(aimgraph.transform(base, x), seed=2)
    left = int(sys.argv[2])
    real = os.replace, os.fsync
    def counted(function):
        def call(*args, **kwargs):
            global left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return function(*args, **kwargs)
        return call
    os.replace, os.fsync = map(counted, real)
    aimgraph.save(aim, sys.argv[1])
"""


@pytest.mark.parametrize("steps", range(6))
def test_a_killed_save_leaves_a_whole_checkpoint(steps: int, tmp_path: Path) -> None:
    base, x = build("linear")
    old, new = (randomise(aimgraph.transform(base, x), seed) for seed in (1, 2))
    aimgraph.save(old, tmp_path)
    code = textwrap.dedent(KILLED)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(steps)], cwd=Path(__file__).parents[2])
    assert done.returncode == (-signal.SIGKILL if steps < 5 else 0)
    loaded = aimgraph.load(tmp_path, base)
    assert same(loaded, old if steps < 4 else new)
    aimgraph.save(new, tmp_path)  # goes on from whatever lies there
    assert same(aimgraph.load(tmp_path, base), new)


def test_only_the_two_files_stay(tmp_path: Path) -> None:
    base, x = build("linear")
    for seed in (1, 2, 2):
        aimgraph.save(randomise(aimgraph.transform(base, x), seed), tmp_path)
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 2
    spec = json.loads((tmp_path / "aimgraph.json").read_text())
    assert names == ["aimgraph.json", spec["file"]["name"]]
    assert set(spec["tensors"]) == {key for key in aimgraph.transform(base, x).state_dict() if key.startswith("aim.")}


def with_a_head(lowering: str = "split") -> tuple[nn.Module, aimgraph.AimModule, torch.Tensor]:
    """A base, the same with a memory and a new head that was trained, and inputs."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.Linear(6, 2))
    base, x = nn.Sequential(*layers, head).eval(), torch.randn(4, 3, 8, 8)
    aim = aimgraph.transform(base, x, lowering=lowering)
    if lowering == "split":
        aimgraph.freeze_base(aim)
    else:
        aim.get_submodule("0").requires_grad_(False), aim.get_submodule("1").requires_grad_(False)
    aim.get_submodule("5").requires_grad_(True).train()
    optimizer = torch.optim.Adam([one for one in aim.parameters() if one.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        aim(x).square().sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    return base, aim, x


@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_what_was_trained_beside_the_memory_is_told_or_saved(lowering: str, tmp_path: Path) -> None:
    base, aim, x = with_a_head(lowering)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    with pytest.warns(UserWarning, match=r"trained: 5\.0\.weight, 5\.0\.bias, 5\.3\.weight.*what=\"trainable\""):
        aimgraph.save(copy.deepcopy(aim), tmp_path / "memory")
    with pytest.warns(UserWarning, match=r"other weights of Sequential: .* what=\"trainable\""):
        aimgraph.load(tmp_path / "memory", base)
    aimgraph.save(aim, tmp_path / "trainable", what="trainable")
    held = json.loads((tmp_path / "trainable" / "aimgraph.json").read_text())["tensors"]
    assert {"5.0.weight", "5.1.running_mean", "5.1.num_batches_tracked", "5.3.bias"} < held.keys()
    assert not any(key.startswith(("0.", "1.")) for key in held)
    loaded = aimgraph.load(tmp_path / "trainable", base)
    assert all(torch.equal(value, aim.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert torch.equal(loaded.eval()(x), aim.eval()(x))
    assert all(torch.equal(value, base.state_dict()[key]) for key, value in before.items())
    if lowering == "split":
        flags = ({name: one.requires_grad for name, one in module.named_parameters()} for module in (aim, loaded))
        assert next(flags) == next(flags)
        with pytest.warns(UserWarning, match="leaves out"):
            aimgraph.save(loaded, tmp_path / "again")
        fresh = aimgraph.transform(base, x)
        aimgraph.load_memory(fresh, tmp_path / "trainable")  # of it, only the memory is taken
        assert torch.equal(fresh.get_parameter("5.0.weight"), base.get_parameter("5.0.weight"))
        key = "aim.memory.source.value"
        assert torch.equal(fresh.state_dict()[key], aim.state_dict()[key])


def test_a_memory_alone_is_saved_in_silence_where_nothing_else_was_trained(tmp_path: Path) -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x)
    optimizer = torch.optim.SGD(aimgraph.memory_parameters(aim), 0.1)
    aim(x).square().sum().backward()  # the base has gradients, and no optimiser
    optimizer.step()
    aimgraph.save(aim, tmp_path)  # warnings are errors here
    torch.optim.SGD(aim.parameters(), 0.1).step()
    with pytest.warns(UserWarning, match=r"what=\"memory\" leaves out .* and \d+ more"):
        aimgraph.save(aim, tmp_path)
    aimgraph.freeze_base(aim)  # nothing is trained from now on, and load tells of other weights
    aimgraph.save(aim, tmp_path)


def test_what_was_trained_around_a_part(tmp_path: Path) -> None:
    x = torch.randn(2, 4)

    def build_whole() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 3))

    whole = aimgraph.freeze_base(aimgraph.transform(build_whole(), x, within="0"))
    whole[1].requires_grad_(True)
    aimgraph.save(whole, tmp_path)
    whole(x).square().sum().backward()
    torch.optim.SGD(whole[1].parameters(), 0.1).step()
    with pytest.warns(UserWarning, match=r"trained: 1\.weight, 1\.bias; save with"):
        aimgraph.save(whole, tmp_path)
    loaded = aimgraph.load(aimgraph.save(whole, tmp_path, what="trainable"), build_whole())
    assert torch.equal(loaded(x), whole(x))
    assert [one.requires_grad for one in loaded[1].parameters()] == [True, True]
    assert not loaded[0].get_parameter("0.weight").requires_grad
