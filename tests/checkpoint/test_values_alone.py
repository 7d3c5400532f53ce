"""Values alone: a task is N numbers, read by weights that are drawn again."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.checkpoint.compare import distances, mean, summary
from aimgraph.checkpoint.entries import lengthened, shortened
from aimgraph.checkpoint.tensor_files import read_spec
from aimgraph.cli.main import cli
from aimgraph.errors import CheckpointError
from aimgraph.runtime import read_bounds
from tests.nets import NETS, build, run, updates_for

VALUE = "aim.memory.source.value"


def fixed(name: str = "residual", **options: Any) -> tuple[nn.Module, Any, Any]:
    """The base, the same with read weights that are drawn and stand still, and an input."""
    base, x = build(name)
    base.eval()
    aim = aimgraph.transform(base, x, **({"start": "zero_values", "shape": (2, 2, 3)} | options))
    return base, aimgraph.freeze_reads(aimgraph.freeze_base(aim)).eval(), x


def value(aim: nn.Module, seed: int, name: str = VALUE) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        aim.get_parameter(name).copy_(torch.randn(aim.get_parameter(name).shape, generator=generator))


def names_of(aim: nn.Module) -> list[str]:
    return [name for name, _ in aimgraph.trainable_parameters(aim)]


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", NETS)
def test_a_task_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    base, aim, x = fixed(name, shape="auto")
    plain = run(aim, x)
    value(aim, 1)
    assert not torch.equal(run(aim, x), plain)
    aimgraph.save(aim, tmp_path, what="values")
    assert set(read_spec(tmp_path).tensors) == {VALUE, "scales.memory"}
    loaded = aimgraph.load(tmp_path, base)
    assert same(loaded, aim)
    assert torch.equal(run(loaded.eval(), x), run(aim, x))
    assert names_of(loaded) == names_of(aim) == [VALUE]
    aimgraph.save(loaded, tmp_path / "again", what="values")
    assert read_spec(tmp_path / "again") == read_spec(tmp_path)
    other = fixed(name, shape="auto")[1]
    aimgraph.load_memory(other, tmp_path)
    assert same(other, aim)


@pytest.mark.parametrize("name", ["residual", "linear", "tokens", "functions"])
def test_sets_of_an_untrained_memory_run_as_one_batch(name: str, tmp_path: Path) -> None:
    base, x = build(name)
    aim = aimgraph.freeze_base(aimgraph.transform(base.eval(), x, start="zero_values")).eval()
    plain = run(aim, x)
    for task in ("a", "b"):
        aim.add_memory_set(task, share_reads=True)
        with aim.using(task):
            assert torch.equal(run(aim, x), plain)
    assert names_of(aim) == [VALUE, *(f"aim.sets.{one}.memory.source.value" for one in "ab")]
    apart = {}
    for seed, task in enumerate(("a", "b")):
        value(aim, seed, f"aim.sets.{task}.memory.source.value")
        with aim.using(task):
            apart[task] = run(aim, x)
        aimgraph.save(aim, tmp_path / task, what="values", memory_set=task)
    assert not torch.equal(apart["a"], apart["b"])
    tasks = [("b", "a")[row % 2] for row in range(x.shape[0])]
    with aim.using(tasks):
        mixed = run(aim, x)
    wanted = torch.stack([apart[task][row] for row, task in enumerate(tasks)])
    assert torch.allclose(mixed, wanted, atol=1e-5)
    aimgraph.save(aim, tmp_path / "all", what="values")
    assert same(aimgraph.load(tmp_path / "all", base), aim)
    fresh = aimgraph.freeze_base(aimgraph.transform(base, x, start="zero_values")).eval()
    fresh.add_memory_set("c", share_reads=True)
    aimgraph.load_memory(fresh, tmp_path / "b", memory_set="c")
    assert torch.equal(run(fresh, x), plain)
    with fresh.using("c"):
        assert torch.equal(run(fresh, x), apart["b"])


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).chunk(3, -1)
        x = x + self.attn["proj"](F.scaled_dot_product_attention(q, k, v))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class ViT(nn.Module):
    """The layers of a ViT, with the long names of torchvision's."""

    def __init__(self, width: int = 16, depth: int = 12) -> None:
        super().__init__()
        self.conv_proj, self.head = nn.Conv2d(3, width, 16, 16), nn.Linear(width, 10)
        blocks = {f"encoder_layer_{index}": Block(width) for index in range(depth)}
        self.encoder = nn.ModuleDict({"layers": nn.ModuleDict(blocks)})

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        for block in self.encoder["layers"].values():  # type: ignore[operator]
            x = block(x)
        return self.head(x.mean(1))


@pytest.mark.parametrize(("network", "sites"), [("resnet50", 54), ("vit", 50)])
def test_a_task_on_disk_is_small(network: str, sites: int, tmp_path: Path) -> None:
    base: nn.Module = ViT() if network == "vit" else aimgraph.models_zoo.resnet50_keras(num_classes=10)
    x = torch.randn(2, 3, 64, 64)
    aim = aimgraph.transform(base.eval(), x, start="zero_values", shape=(16, 16, 1))
    value(aim, 1)
    aimgraph.save(aim, tmp_path, what="values")
    assert len(aimgraph.plan(aim).memories[0].reads) == sites
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4 * 256 + 4000 + 8 * sites
    assert torch.equal(aimgraph.load(tmp_path, base).eval()(x), aim.eval()(x))


def test_names_are_shortened_and_come_back() -> None:
    names = ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0", "", "12", "x" * 2000, "x" * 2000 + "y"]
    short = list(shortened(names))
    assert list(lengthened(short)) == names
    assert short[1] == (14, "proj")
    assert max(shared for shared, _ in short) == 999


Change = Callable[[Any], None]


def trained(aim: Any) -> None:
    with torch.no_grad():
        aim.aim.memory.reads.down.weight[0, 0, 0, 0] += 1e-7


REFUSED: dict[str, tuple[dict[str, Any], Change, str]] = {
    "trained": ({}, trained, r"memory 'memory' at down is another one \(trained.*what=\"memory\""),
    "zero_reads": ({"start": "zero_reads"}, lambda aim: None, r"start='zero_reads'.*what=\"memory\""),
    "drawn": ({"start": "drawn"}, lambda aim: None, "start='drawn'"),
    "updates": ({"updates": ("down",)}, lambda aim: None, r"has updates, whose weights are trained.*what=\"memory\""),
    "concat": ({"lowering": "concat"}, lambda aim: None, "is in concat form"),
    "own set": ({}, lambda aim: aim.add_memory_set("own"), "set 'own' has read weights of its own"),
    "other dtype": ({}, lambda aim: aim.aim.double(), r"is torch\.float64, unlike its layer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_more_than_values_is_refused(case: str, tmp_path: Path) -> None:
    options, change, match = REFUSED[case]
    base, x = build("residual")
    if case == "updates":
        options = updates_for(base, x)
    aim = aimgraph.transform(base.eval(), x, **({"start": "zero_values"} | options))
    change(aim)
    with pytest.raises(CheckpointError, match=match):
        aimgraph.save(aim, tmp_path / "out", what="values")
    assert not (tmp_path / "out").exists()
    aimgraph.save(aim, tmp_path / "out")


class Mixed(nn.Module):
    """A read with weights of its own."""

    def __init__(self, spec: aimgraph.ReadSpec) -> None:
        super().__init__()
        self.grid, self.mix = spec.grid, nn.Linear(spec.size, spec.positions, bias=False)

    def forward(self, memory: Tensor) -> Tensor:
        return self.mix(memory).reshape(-1, *self.grid, 1)


def test_reads_with_tensors_of_their_own_are_refused(tmp_path: Path) -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, start="zero_values", read=Mixed, shape=(2, 2, 3))
    with pytest.raises(CheckpointError, match=r"reads with tensors of their own \(Mixed\)"):
        aimgraph.save(aim, tmp_path, what="values")


def test_one_set_of_values_beside_one_with_reads_of_its_own(tmp_path: Path) -> None:
    base, aim, x = fixed()
    aim.add_memory_set("own")
    aim.add_memory_set("v", share_reads=True)
    value(aim, 3, "aim.sets.v.memory.source.value")
    aimgraph.save(aim, tmp_path / "v", what="values", memory_set="v")
    with pytest.raises(CheckpointError, match="set 'own' has read weights of its own"):
        aimgraph.save(aim, tmp_path / "own", what="values", memory_set="own")
    loaded = aimgraph.load(tmp_path / "v", base).eval()
    with aim.using("v"):
        assert torch.equal(run(loaded, x), run(aim, x))
    before = copy.deepcopy(aim.state_dict())
    with pytest.raises(CheckpointError, match="values alone need read weights as they were drawn"):
        aimgraph.load_memory(aim, tmp_path / "v", memory_set="own")
    assert all(torch.equal(one, before[key]) for key, one in aim.state_dict().items())
    aimgraph.load_memory(aim, tmp_path / "v", memory_set="default")
    assert torch.equal(aim.get_parameter(VALUE), loaded.get_parameter(VALUE))


def test_another_base_is_refused(tmp_path: Path) -> None:
    base, aim, x = fixed()
    aimgraph.save(aim, tmp_path, what="values")
    other = copy.deepcopy(base)
    with torch.no_grad():
        next(other.parameters()).flatten()[0] += 1e-6
    for wrong in (other, copy.deepcopy(base).double(), nn.Sequential(base)):
        with pytest.raises(CheckpointError, match=r"made with another base \(Residual\): its fingerprint"):
            aimgraph.load(tmp_path, wrong)
    with pytest.raises(CheckpointError, match="made with another base"):
        aimgraph.load_memory(aimgraph.transform(other, x, start="zero_values", shape=(2, 2, 3)), tmp_path)


def test_values_are_refused_by_other_reads(tmp_path: Path) -> None:
    base, aim, x = fixed()
    value(aim, 1)
    aimgraph.save(aim, tmp_path, what="values")
    changed = fixed()[1]
    trained(changed)
    for other in (changed, fixed(seed=1)[1], fixed(start_scale=2.0)[1], fixed(start="drawn")[1]):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(CheckpointError, match="is another one"):
            aimgraph.load_memory(other, tmp_path)
        assert all(torch.equal(one, before[key]) for key, one in other.state_dict().items())
    narrow = aimgraph.transform(base, x, start="zero_values", shape=(2, 2, 3), exclude="down")
    with pytest.raises(CheckpointError, match="was read at down, and here it is at"):
        aimgraph.load_memory(narrow, tmp_path)


def test_layers_of_other_strides_are_refused(tmp_path: Path) -> None:
    def network(stride: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride, 1), nn.Conv2d(4, 2, 3))

    x = torch.randn(2, 3, 12, 12)
    aimgraph.save(aimgraph.transform(network(1), x, start="zero_values", shape=(30,)), tmp_path, what="values")
    with pytest.raises(CheckpointError, match="other channels, on other grids"):
        aimgraph.load(tmp_path, network(2))


@pytest.mark.parametrize("options", [{"read": "resize"}, {"source": "ones_conv"}], ids=["resize", "ones_conv"])
def test_other_reads_and_sources(options: dict[str, Any], tmp_path: Path) -> None:
    base, aim, x = fixed(**options)
    names = names_of(aim)
    assert all(name.startswith("aim.memory.source.") for name in names)
    for name in names:
        value(aim, 1, name)
    aimgraph.save(aim, tmp_path, what="values")
    assert set(read_spec(tmp_path).tensors) == {*names, "scales.memory"}
    loaded = aimgraph.load(tmp_path, base).eval()
    assert same(loaded, aim)
    assert torch.equal(run(loaded, x), run(aim, x))


def test_batch_statistics_that_have_moved_are_another_base(tmp_path: Path) -> None:
    base, x = build("residual")
    aim = aimgraph.freeze_reads(aimgraph.transform(base, x, start="zero_values"))
    run(aim.train(), x)
    aimgraph.save(aim, tmp_path, what="values")
    with pytest.raises(CheckpointError, match=r"batch statistics move .* unless aimgraph\.freeze_base holds them"):
        aimgraph.load(tmp_path, base)
    assert same(aimgraph.load(tmp_path, aimgraph.strip(aim)), aim)


def test_a_later_formula_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, aim, x = fixed(start_scale=0.5)
    value(aim, 1)
    aimgraph.save(aim, tmp_path / "a", what="values")
    for place in ("read_layers", "read_bounds"):
        monkeypatch.setattr(f"aimgraph.runtime.{place}.READ_BOUND", read_bounds.memory_bound)
    monkeypatch.setattr("aimgraph.emit.draw_memory.READ_BOUND", read_bounds.memory_bound)
    other = aimgraph.transform(base, x, start="zero_values", shape=(2, 2, 3), start_scale=0.5)
    assert not torch.equal(other.aim.memory.reads.down.weight, aim.aim.memory.reads.down.weight)
    loaded = aimgraph.load(tmp_path / "a", base)
    assert same(loaded, aim)
    aimgraph.save(copy.deepcopy(loaded), tmp_path / "b", what="values")
    assert read_spec(tmp_path / "a") == read_spec(tmp_path / "b")


def test_a_formula_of_weights_that_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale is that of the weights when the memory was drawn."""
    for place in ("runtime.read_layers", "runtime.read_bounds", "emit.draw_memory"):
        monkeypatch.setattr(f"aimgraph.{place}.READ_BOUND", read_bounds.feature_bound)
    _, aim, _ = fixed()
    before = aim.aim.memory.reads.down.weight.clone()
    with torch.no_grad():
        aim.get_parameter("down.weight").mul_(3)
    with pytest.warns(UserWarning, match="that were trained"):
        aimgraph.save(aimgraph.freeze_base(aim, False), tmp_path, what="values")
    loaded = aimgraph.load(tmp_path, aimgraph.strip(aim))
    assert torch.equal(loaded.aim.memory.reads.down.weight, before)
    assert same(loaded, aim)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    base, aim, _ = fixed()
    value(aim, 1)
    aim.to(dtype)
    aimgraph.save(aim, tmp_path, what="values")
    assert same(aimgraph.load(tmp_path, copy.deepcopy(base).to(dtype)), aim)


def test_two_memories_in_a_part(tmp_path: Path) -> None:
    base, x = build("residual")
    whole = nn.Sequential(base, nn.Flatten()).eval()
    configs = [aimgraph.AimConfig(name=name, shape=(4,), start="zero_values", within="0") for name in ("a", "b")]
    aim = aimgraph.transform(whole, x, config=configs)
    for name in ("a", "b"):
        value(aim, 1, f"0.aim.{name}.source.value")
    aimgraph.save(aimgraph.freeze_reads(aim), tmp_path, what="values")
    spec = read_spec(tmp_path)
    assert {key for key in spec.tensors if key.startswith("scales")} == {"scales.0.a", "scales.0.b"}
    first, second = (memory.drawn for memory in spec.parts[0].memories)
    assert first is not None
    assert second is not None
    assert first.sha256 != second.sha256
    loaded = aimgraph.load(tmp_path, whole)
    assert same(loaded, aim)
    assert torch.equal(run(loaded, x), run(aim, x))


def test_a_trained_base_is_told(tmp_path: Path) -> None:
    base, aim, _ = fixed()
    with torch.no_grad():
        aim.get_parameter("stem.0.weight").add_(1)
    with pytest.warns(UserWarning, match=r'what="values" leaves out parameters of the base'):
        aimgraph.save(aimgraph.freeze_base(aim, False), tmp_path, what="values")
    with pytest.raises(CheckpointError, match="made with another base"):
        aimgraph.load(tmp_path, base)
    assert same(aimgraph.load(tmp_path, aimgraph.strip(aim)), aim)


def test_files_of_values_are_listed_compared_and_averaged(tmp_path: Path) -> None:
    base, aim, _ = fixed()
    for seed in (1, 2):
        value(aim, seed)
        aimgraph.save(aim, tmp_path / str(seed), what="values")
    aimgraph.save(aim, tmp_path / "memory")
    (memory,) = (found := summary(tmp_path / "1")).memories
    assert (found.what, memory.values, memory.reads, memory.bytes, set(memory.norms)) == (
        "values",
        12,
        0,
        48,
        {"source"},
    )
    (distance,) = distances(tmp_path / "1", tmp_path / "2")
    assert distance.name == "memory.source.value"
    half = mean([tmp_path / "1", tmp_path / "2"], tmp_path / "mean", [1.0, 1.0])
    loaded = aimgraph.load(half, base).state_dict()[VALUE]
    sums = sum(aimgraph.load(tmp_path / seed, base).state_dict()[VALUE] for seed in ("1", "2"))
    assert torch.allclose(loaded, torch.as_tensor(sums))
    called = [
        CliRunner().invoke(cli, ["memory", *words])
        for words in (("list", str(tmp_path / "1")), ("diff", str(tmp_path / "1"), str(tmp_path / "2")))
    ]
    assert "1 holds values alone: its read weights are drawn again" in called[0].output
    assert "both hold values alone, of the same base" in called[1].output
    aimgraph.save(fixed(seed=1)[1], tmp_path / "seed", what="values")
    for other in ("memory", "seed"):
        with pytest.raises(CheckpointError, match=r"not of the same make: memory\.reads is drawn \("):
            distances(tmp_path / "1", tmp_path / other)


DRAWN = """
import sys
from pathlib import Path
import torch
import aimgraph
from tests.checkpoint.test_values_alone import drawn_on
aim, here, there = drawn_on(Path(sys.argv[1])), Path(sys.argv[1]) / "here", Path(sys.argv[1]) / "there"
aimgraph.save(aim, there, what="values")
loaded = aimgraph.load(here, aimgraph.strip(aim))
assert all(torch.equal(one, aim.state_dict()[key]) for key, one in loaded.state_dict().items())
print(torch.backends.cpu.get_cpu_capability())
"""


def drawn_on(folder: Path) -> Any:
    """A memory on a base whose numbers stand in a file: those of a normal distribution differ between processors."""
    base, x = build("residual")
    base.load_state_dict(load_file(folder / "base.safetensors"))
    return aimgraph.transform(base.eval(), x, start="zero_values", shape=(2, 2, 3))


def test_other_processors_draw_the_same(tmp_path: Path) -> None:
    """torch has kernels for several kinds of processors; ``ATEN_CPU_CAPABILITY`` chooses the plain ones."""
    save_file(build("residual")[0].state_dict(), str(tmp_path / "base.safetensors"))
    aim = drawn_on(tmp_path)
    aimgraph.save(aim, tmp_path / "here", what="values")
    done = subprocess.run(
        [sys.executable, "-c", DRAWN, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "DEFAULT"
    assert read_spec(tmp_path / "here") == read_spec(tmp_path / "there")
    assert same(aimgraph.load(tmp_path / "there", aimgraph.strip(aim)), aim)
