"""A transformation that is not memory: the example's adapters, inserted, trained, taken off and exported."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph import CheckpointError, ConfigError, PassError, PlanError
from aimgraph.compiler.program import BasePass, Program
from aimgraph.passes import EMITTING, FOLDING, PLANNING
from examples.bottleneck_adapters import Adapter, InsertAdapters, main

ADAPTERS = InsertAdapters(layers=("stem", "block.*"), rank=3)


class Base(nn.Module):
    """A stem, a residual block whose forward differs by mode, one layer that is called twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.ModuleDict({"a": nn.Conv2d(6, 6, 3, padding=1), "norm": nn.BatchNorm2d(6)})
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = self.block["norm"](self.block["a"](y)).relu_()
        y = y + nn.functional.dropout(self.block["a"](z), 0.5, self.training)
        return self.head(y.mean((2, 3)))


def built() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Base(), torch.randn(4, 3, 6, 5)


def seeded(module: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)
    return module(x)


@pytest.mark.parametrize("passes", [(ADAPTERS,), (*PLANNING, *EMITTING, ADAPTERS)], ids=["alone", "beside a memory"])
def test_nothing_changes_until_they_are_trained(passes: tuple[object, ...]) -> None:
    base, x = built()
    before = torch.get_rng_state()
    adapted = aimgraph.transform(base, x, passes=passes, verify="full")
    assert torch.equal(before, torch.get_rng_state())
    adapters = {path for path, module in adapted.named_modules() if isinstance(module, Adapter)}
    assert adapters == {"aim.adapters.stem", "aim.adapters.block.a"}
    for train in (True, False):
        assert torch.equal(seeded(adapted.train(train), x), seeded(base.train(train), x))
    assert aimgraph.verify(base, adapted).ok
    reads = [read for memory in aimgraph.plan(adapted).memories for read in memory.reads]
    assert len(reads) == (3 if len(passes) > 1 else 0)


def test_trained_copied_and_taken_off() -> None:
    base, x = built()
    adapted = aimgraph.freeze_base(aimgraph.transform(base, x, passes=(ADAPTERS,)))
    parameters = list(aimgraph.memory_parameters(adapted))
    assert sum(p.numel() for p in parameters) == 2 * (6 * 3 + 3 + 3 * 6 + 6)
    optimizer = torch.optim.Adam(parameters, lr=0.05)
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(adapted(x), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    for copied in (copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted))):
        assert torch.equal(copied(x), adapted(x))
    with aimgraph.disable_memory(adapted):
        assert torch.equal(adapted(x), base.eval()(x))
    stripped = aimgraph.strip(adapted)
    assert type(stripped) is Base
    assert torch.equal(stripped.eval()(x), base.eval()(x))
    again = aimgraph.transform(base, x, passes=(ADAPTERS,))
    again.load_state_dict(adapted.state_dict())
    assert torch.equal(again.eval()(x), adapted.eval()(x))
    with pytest.raises(CheckpointError, match=r"also changed by insert-adapters: save its state_dict\(\)"):
        aimgraph.save(adapted, "nowhere")
    assert not Path("nowhere").exists()


def test_exported(tmp_path: Path) -> None:
    base, x = built()
    adapted = aimgraph.transform(base, x, passes=(*PLANNING, *EMITTING, ADAPTERS)).eval()
    with torch.no_grad():
        for parameter in aimgraph.memory_parameters(adapted):
            parameter.normal_(0, 0.3)
    assert not torch.allclose(adapted(x), base.eval()(x), atol=1e-2)
    report = aimgraph.export_onnx(adapted, tmp_path / "adapted.onnx", x)
    assert report.relative_difference <= 1e-5
    assert torch.allclose(aimgraph.fold(adapted)(x), adapted(x), atol=1e-5)


def test_what_is_left_is_said_and_what_can_not_be_is_refused() -> None:
    base, x = built()
    adapted = aimgraph.transform(base, x, passes=(InsertAdapters(layers=("*",)),))
    assert "insert-adapters left head: it gives [4, 4] and no map [B, C, H, W]" in aimgraph.plan(adapted).notes
    with pytest.raises(ConfigError, match=r"\['shape'\] are options of a memory, and none of the passes inserts one"):
        aimgraph.transform(base, x, passes=(ADAPTERS,), shape=(2, 2, 3))
    with pytest.raises(ConfigError, match=r"the passes end at stage PLANNED.*let \*aimgraph.passes.EMITTING follow"):
        aimgraph.transform(base, x, passes=(*PLANNING, ADAPTERS))


def test_a_second_run_finds_the_adapters_there() -> None:
    base, x = built()
    once, twice = (aimgraph.transform(base, x, passes=passes) for passes in (ADAPTERS, (ADAPTERS, ADAPTERS)))
    assert twice.code == once.code
    with pytest.raises(PlanError, match=r"layers: 'blok\.\*'.*block\.a"):
        aimgraph.transform(base, x, passes=InsertAdapters(("blok.*",)))


class NoResult(BasePass):
    def run(self, program: Program) -> Any:
        return None


@pytest.mark.parametrize(
    ("passes", "kind", "message"),
    [
        ("abc", ConfigError, "passes hold 'a': a pass is an object with name, requires, ensures and run"),
        ([InsertAdapters], ConfigError, "passes hold <class .*InsertAdapters'>: a pass is an object"),
        (NoResult(), PassError, "no-result: its run gives a NoneType; that of a pass gives a PassResult"),
        ((*PLANNING, *EMITTING) * 2, PassError, "find-sites is for a program without a memory, and this one has"),
        ((*PLANNING, *EMITTING, *FOLDING), ConfigError, r"reach stage FOLDED.*call aimgraph\.fold or export_onnx"),
    ],
)
def test_sequences_that_make_no_sense_are_refused(passes: Any, kind: type[Exception], message: str) -> None:
    base, x = built()
    before = copy.deepcopy(base.state_dict())
    with pytest.raises(kind, match=message):
        aimgraph.transform(base, x, passes=passes)
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())


def test_a_config_that_no_pass_looks_at_is_refused() -> None:
    base, x = built()
    with pytest.raises(ConfigError, match=r"\['config'\] are options of a memory"):
        aimgraph.transform(base, x, passes=ADAPTERS, config=aimgraph.AimConfig(shape=(2, 2, 3)))


class Halving(nn.Module):
    """Decides by the size of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] > 8:
            x = x[..., ::2]
        return self.conv(x)


def test_inputs_that_lead_elsewhere_are_refused_with_the_reason() -> None:
    adapted = aimgraph.transform(Halving(), torch.randn(2, 3, 4, 4), passes=(InsertAdapters(("conv",)),)).eval()
    with pytest.raises(aimgraph.ExampleInputError, match=r"its graph is changed by other passes \(insert-adapters\)"):
        adapted(torch.randn(2, 3, 4, 12))


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main()
    losses = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines() if "loss" in line]
    assert losses[-1] < losses[0] / 2


def test_what_a_model_without_memories_can_not_do_is_said(tmp_path: Path) -> None:
    base, x = built()
    plain = aimgraph.transform(base, x, passes=())
    with pytest.raises(CheckpointError, match=r"holds memories, and this model has none .* save its state_dict\(\)"):
        aimgraph.save(plain, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
    with pytest.raises(PlanError, match=r"no memory to refit .* transform its base again"):
        aimgraph.refit(plain)
