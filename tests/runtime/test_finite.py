"""A batch that is not finite leaves nothing behind, and its user is told."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.runtime.state import StateCarry

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
UPDATE, CARRY = "aim.memory.updates.0", "aim.memory.carry"


def base() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8, 4)).eval()


def written(**options: Any) -> nn.Module:
    chosen: dict[str, Any] = {"shape": (2, 2, 3), "updates": "stages", "carry": "state", "start": "drawn"}
    return aimgraph.freeze_base(aimgraph.transform(base(), X, **chosen | options)).train()


def kept(aim: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in aim.named_buffers() if not name.endswith("skipped")}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
def test_training_goes_on_after_an_overflow(value: float) -> None:
    aim, twin = written(), written()
    scaler = torch.amp.GradScaler("cpu")
    optimizers = [torch.optim.Adam(aimgraph.memory_parameters(one), 1e-3) for one in (aim, twin)]

    def step(one: nn.Module, x: Tensor) -> None:
        optimizer = optimizers[one is twin]
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(one(x), torch.arange(4))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    step(aim, X), step(twin, X)
    before = kept(aim)
    with pytest.warns(UserWarning, match=r"memory 'memory': a batch gave values that are infinite.*skipped_writes"):
        step(aim, X * value)
    assert same(before, kept(aim))
    assert aimgraph.skipped_writes(aim) == {UPDATE: 1, CARRY: 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        step(aim, X * value)
        aim.eval(), aim.train()
    assert aimgraph.skipped_writes(aim) == {UPDATE: 2, CARRY: 2}
    scaler = torch.amp.GradScaler("cpu")
    step(aim, X), step(twin, X)
    assert not same(before, kept(aim))
    assert same(kept(aim), kept(twin))
    assert torch.equal(aim.eval()(X), twin.eval()(X))
    assert aimgraph.skipped_writes(twin) == {}
    assert all(not name.endswith("skipped") for name in aim.state_dict())
    assert aimgraph.skipped_writes(pickle.loads(pickle.dumps(aim))) == {UPDATE: 2, CARRY: 2}


def test_a_compiled_forward_skips_without_a_break() -> None:
    aim = written()
    compiled = torch.compile(copy.deepcopy(aim), fullgraph=True, backend="aot_eager")
    for x in (X, X * float("inf"), X):
        for one in (aim, compiled):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                output = one(x)
            if x is X:
                output.sum().backward()
    assert same(kept(aim), kept(compiled._orig_mod))
    with pytest.warns(UserWarning, match="a batch gave values"):  # where the program of a forward can't say it
        compiled._orig_mod.eval()
    assert aimgraph.skipped_writes(compiled._orig_mod) == aimgraph.skipped_writes(aim) == {UPDATE: 1, CARRY: 1}


def test_an_exported_training_forward_skips() -> None:
    program: Any = torch.export.export(written(), (X,), strict=False).module()
    program(X)
    before = {name: value.clone() for name, value in program.state_dict().items()}
    program(X * float("nan"))
    assert same(before, program.state_dict())
    program(X)
    assert not same(before, program.state_dict())


class Averages(nn.Module):
    """Averages that are written, replaced and counted; and a mask that is infinite by design."""

    def __init__(self, spec: aimgraph.BlockSpec) -> None:
        super().__init__()
        self.new = nn.Linear(spec.features, spec.size)
        self.register_buffer("average", torch.zeros(spec.size))
        self.register_buffer("replaced", torch.zeros(spec.size))
        self.register_buffer("calls", torch.tensor(0))
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

    def forward(self, memory: Tensor, features: Tensor) -> Tensor:
        new = self.new(features.flatten(2).mean(2))
        if self.training:
            with torch.no_grad():
                self.average.lerp_(new.mean(0), 0.1)
                self.replaced = self.replaced * 0.9 + new.mean(0)
                self.calls += 1
        return memory + new


@pytest.mark.filterwarnings("ignore:memory 'memory'")
def test_whatever_a_block_keeps_is_put_back_as_a_whole() -> None:
    aim = written(updates=("0",), block=Averages)
    aim(X)
    before = kept(aim)
    aim(X * float("inf"))
    assert same(before, kept(aim))
    assert int(aim.get_buffer(f"{UPDATE}.block.calls")) == 1
    aim(X)
    changed = {name for name, value in kept(aim).items() if not torch.equal(value, before[name])}
    assert changed == {f"{CARRY}.state", *(f"{UPDATE}.block.{name}" for name in ("average", "replaced", "calls"))}


def test_a_sum_that_half_precision_does_not_hold_is_no_overflow() -> None:
    carry = StateCarry(2, 0.5, write_in_eval=False).half()
    carry(torch.zeros(1, 2).half(), torch.full((128, 2), 1000.0).half())
    assert torch.equal(carry.state, torch.full((2,), 500.0).half())
    assert not carry.skipped


def test_a_finite_batch_is_written_as_ever() -> None:
    aim = written()
    norms = {name: norm for name, norm in aim.named_modules() if isinstance(norm, nn.BatchNorm2d) and "aim" in name}
    twins: dict[str, Any] = {name: copy.deepcopy(norm) for name, norm in norms.items()}
    hooks = [norm.register_forward_hook(lambda _, x, __, twin=twins[name]: twin(*x)) for name, norm in norms.items()]
    (aim(X).sum() + aim(X).sum()).backward()  # no version of a statistic is checked by a backward pass
    for hook in hooks:
        hook.remove()
    for name, norm in norms.items():
        assert same(dict(norm.named_buffers()), dict(twins[name].named_buffers()))
        assert int(norm.num_batches_tracked) == 2


@pytest.mark.parametrize("carry", [None, "state"])
def test_the_count_survives_memory_that_is_not_filled(carry: str | None) -> None:
    x = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)

    def made() -> nn.Module:
        torch.manual_seed(0)
        base = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))
        return aimgraph.transform(base, x, updates="stages", **({} if carry is None else {"carry": carry})).eval()

    state, wanted = made().state_dict(), made()(x)
    for emptied in (made().to("meta").to_empty(device="cpu"), made().to_empty(device="cpu")):
        emptied.load_state_dict(state)
        assert aimgraph.skipped_writes(emptied) == {}
        assert torch.equal(emptied(x), wanted)
    assigned = made().to("meta")
    assigned.load_state_dict(state, assign=True)
    assert torch.equal(assigned(x), wanted)
    assigned.train()(x)
    assert aimgraph.skipped_writes(assigned) == {}
