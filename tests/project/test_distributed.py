"""Several processes, on the CPU with gloo: data parallelism, carried states, shards, and wrapped models as input."""

import copy
import datetime
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DataParallel, DistributedDataParallel

import aimgraph
from tests.nets import build, randomise, run

RANKS, STEPS, SAMPLES, SECONDS = 2, 3, 8, 120
STATE = {"shape": (3,), "updates": ("0",), "carry": "state", "rate": 0.5}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "convolutions": ("shared", {"shape": (2, 2, 3)}),
    "concat form": ("conv2d", {"shape": (2, 2, 3), "lowering": "concat"}),
    "tokens": ("tokens", {"shape": (4, 1, 2)}),
    "a channels-last map": ("channels_last", {"shape": (5, 6, 1)}),
    "memory alone": ("conv2d", {"shape": (2, 2, 3)}),
    "carried state": ("linear", STATE),
}
"""Nets in which no sample depends on others: without batch norm, and without a memory that is a batch's mean."""


def made(case: str) -> tuple[aimgraph.AimModule, Tensor]:
    name, options = CASES[case]
    base, x = build(name, torch.float64)
    aim = randomise(aimgraph.transform(base, x, **options))
    assert isinstance(aim, aimgraph.AimModule)
    if case == "memory alone":
        aimgraph.freeze_base(aim)
    generator = torch.Generator().manual_seed(2)
    return aim.train(), torch.randn((SAMPLES, *x.shape[1:]), generator=generator, dtype=torch.float64)


def trained(aim: nn.Module, x: Tensor, steps: int = STEPS) -> list[float]:
    """Take some steps, and give the losses."""
    parameters = [parameter for parameter in aim.parameters() if parameter.requires_grad]
    optimiser, losses = torch.optim.SGD(parameters, lr=0.05, momentum=0.9), []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = (aim(x) - 1).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def state_of(aim: nn.Module) -> Tensor:
    return aim.get_buffer("aim.memory.carry.state")


def _start(rank: int, work: Callable[[int], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=SECONDS)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=limit)
    torch.save(work(rank), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def spawned(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """What `work(rank)` gives in every process; fails where one fails, or takes too long."""
    context = mp.start_processes(_start, (work, folder), nprocs=RANKS, join=False, start_method="spawn")
    end = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, f"not done after {SECONDS} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def part_of(x: Tensor, rank: int) -> Tensor:
    return x.chunk(RANKS)[rank]


def _train(rank: int) -> dict[str, Any]:
    results = {}
    for case in CASES:
        aim, x = made(case)
        losses = trained(DistributedDataParallel(aim), part_of(x, rank))
        results[case] = losses, aim.state_dict()
    return results


def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    results = spawned(_train, tmp_path)
    for case in CASES:
        aim, x = made(case)
        before = copy.deepcopy(aim.state_dict())
        losses = trained(aim, x)
        (first, state), (second, other) = (result[case] for result in results)
        torch.testing.assert_close([(a + b) / 2 for a, b in zip(first, second, strict=True)], losses)
        for key, value in aim.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-12, atol=1e-12, msg=f"{case}: {key}")
            assert torch.equal(state[key], other[key]), f"{case}: {key}"
        moved = {key for key, value in state.items() if not torch.equal(value, before[key])}
        assert {key for key in moved if key.startswith("aim.")}, case
        assert any(not key.startswith("aim.") for key in moved) == (case != "memory alone")


def _carry(rank: int) -> dict[str, Any]:
    aim, x = made("carried state")
    model, mine, seen = DistributedDataParallel(aim), part_of(x, rank), {}

    def note(what: str) -> None:
        seen[what] = state_of(aim).clone()

    trained(model, mine[: 1 + rank], steps=1)
    note("1 and 2 samples")
    if rank == 0:  # the other one does nothing in the meantime
        aim(mine)
        aim.eval()(mine)
        with torch.no_grad():
            aim.train()(mine)
        copy.deepcopy(aim)(mine)
    note("one alone")
    trained(model, mine, steps=1)
    note("together again")
    with model.no_sync():
        for _ in range(1 + rank):  # as many as one likes
            model(mine).sum().backward()
    note("gradients accumulated")
    model(mine).sum().backward()
    note("and averaged")
    with model.join():
        for _ in range(1 + rank):
            model(mine).sum().backward()
    dist.barrier()
    aim.get_submodule("aim.memory.carry").process_group = dist.group.WORLD
    with torch.no_grad():
        aim(mine)
    aim.eval()(x if rank else mine)
    note("a group of one's own")
    return seen


def test_carried_states_agree_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    first, second = spawned(_carry, tmp_path)
    apart = {what for what in first if not torch.equal(first[what], second[what])}
    assert apart == {"one alone", "gradients accumulated"}
    assert len({tuple(value.tolist()) for value in first.values()}) == len(first)

    aim, x = made("carried state")  # two states, of one and two samples, by hand
    alone = [copy.deepcopy(aim), copy.deepcopy(aim)]
    for rank, module in enumerate(alone):
        module(part_of(x, rank)[: 1 + rank])
    expected = (state_of(alone[0]) + 2 * state_of(alone[1])) / 3
    torch.testing.assert_close(first["1 and 2 samples"], expected, rtol=1e-12, atol=1e-12)


def _shard(rank: int) -> dict[str, Any]:
    results = {}
    mesh = init_device_mesh("cpu", (RANKS,))
    for case in CASES:
        aim, x = made(case)
        if "carry" in CASES[case][1]:
            aim.get_submodule("aim.memory.carry").process_group = dist.group.WORLD
        for module in aim.children():
            if isinstance(module, nn.Conv2d | nn.Linear) and case != "memory alone":
                fully_shard(module, mesh=mesh)
        model = fully_shard(aim, mesh=mesh)
        assert any(isinstance(p, DTensor) for p in model.get_submodule("aim").parameters())
        losses = trained(model, part_of(x, rank))
        state = {
            key: value.full_tensor() if isinstance(value, DTensor) else value
            for key, value in model.state_dict().items()
        }
        results[case] = losses, state
    return results


@pytest.mark.slow
def test_shards_are_one_process_with_twice_the_batch(tmp_path: Path) -> None:
    results = spawned(_shard, tmp_path)
    for case in CASES:
        aim, x = made(case)
        losses = trained(aim, x)
        (first, state), (second, _) = (result[case] for result in results)
        torch.testing.assert_close([(a + b) / 2 for a, b in zip(first, second, strict=True)], losses)
        assert state.keys() == aim.state_dict().keys()
        for key, value in aim.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-12, atol=1e-12, msg=f"{case}: {key}")


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_process_group_stays_with_copies_and_not_with_pickles() -> None:
    aim, x = made("carried state")
    aim.get_submodule("aim.memory.carry").process_group = dist.group.WORLD
    copied, pickled = copy.deepcopy(aim), pickle.loads(pickle.dumps(aim))
    assert copied.get_submodule("aim.memory.carry").process_group is dist.group.WORLD
    assert pickled.get_submodule("aim.memory.carry").process_group is None
    assert torch.equal(copied(x), pickled(x))
    assert torch.equal(state_of(copied), state_of(pickled))
    assert not torch.equal(state_of(copied), state_of(aim))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("inside", [True, False])
def test_compiled_below_and_around_the_wrapper(inside: bool) -> None:
    torch._dynamo.reset()
    aim, x = made("carried state")
    other = copy.deepcopy(aim)
    wrapped: Any = DistributedDataParallel(torch.compile(other, backend="aot_eager") if inside else other)
    model = wrapped if inside else torch.compile(wrapped, backend="aot_eager")
    torch.testing.assert_close(trained(model, x), trained(aim, x))
    for key, value in aim.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-12, atol=1e-12, msg=key)


@pytest.mark.usefixtures("alone")
def test_a_sharded_module_switches_between_its_graphs(tmp_path: Path) -> None:
    base, x = build("functional_dropout")
    aim = randomise(aimgraph.transform(base, x))
    wanted = copy.deepcopy(aim)
    _sharded(aim)
    for mode in (True, False, True):
        assert torch.equal(run(aim.train(mode), x), run(wanted.train(mode), x))
        with aimgraph.disable_memory(aim), aimgraph.disable_memory(wanted):
            assert torch.equal(run(aim, x), run(wanted, x))
    with pytest.raises(aimgraph.CheckpointError, match=r"is spread over processes \(DTensor\): gather the state dict"):
        aimgraph.save(aim, tmp_path / "memory")
    assert not (tmp_path / "memory").exists()
    gathered = get_model_state_dict(aim, options=StateDictOptions(full_state_dict=True))
    other = aimgraph.transform(base, x)
    other.load_state_dict(gathered)
    aimgraph.save(other, tmp_path / "memory")
    loaded = aimgraph.load(tmp_path / "memory", aimgraph.strip(other))
    assert torch.equal(loaded.get_parameter(SOURCE), wanted.get_parameter(SOURCE))


SOURCE = "aim.memory.source.value"


@pytest.mark.usefixtures("alone")
def test_wrapped_in_parallel_is_trained_and_saved_as_it_is(tmp_path: Path) -> None:
    """What takes a transformed module takes one that is wrapped afterwards, too."""
    aim, x = made("convolutions")
    model = DistributedDataParallel(aim)
    aimgraph.freeze_base(model)
    assert {id(p) for p in aimgraph.memory_parameters(model)} == {id(p) for p in model.parameters() if p.requires_grad}
    aimgraph.save(aim, tmp_path / "memory")
    other, _ = made("convolutions")
    with torch.no_grad():
        for parameter in aimgraph.memory_parameters(other):
            parameter.zero_()
    aimgraph.load_memory(other, tmp_path / "memory")
    assert torch.equal(other.eval()(x), model.eval()(x))


@pytest.mark.usefixtures("alone")
def test_memory_sets_below_the_wrapper() -> None:
    """The sets that are not in use get no gradient, which the wrapper has to be told."""
    base, x = build("conv2d")
    aim = aimgraph.transform(base, x)
    aim.add_memory_set("b")
    plain = DistributedDataParallel(copy.deepcopy(aim))
    plain(x).sum().backward()
    with pytest.raises(RuntimeError, match="find_unused_parameters"):
        plain(x)
    model = DistributedDataParallel(aim, find_unused_parameters=True)
    for name in ("default", "b", "b"):
        aim.use(name)
        aim.zero_grad()
        model(x).sum().backward()
        assert all(p.grad is not None for p in aimgraph.memory_parameters(aim, name))


def _sharded(module: nn.Module) -> nn.Module:
    return fully_shard(module, mesh=init_device_mesh("cpu", (1,)))


def _spread(module: nn.Module) -> nn.Module:
    return parallelize_module(module, init_device_mesh("cpu", (1,)), {"0": ColwiseParallel()})


WRAPPED: dict[str, tuple[Callable[[nn.Module], nn.Module], str, str]] = {
    "DDP": (
        DistributedDataParallel,
        r"the model is wrapped in DistributedDataParallel: transform model\.module, then wrap the result",
        r"its submodule '0' is wrapped in DistributedDataParallel: transform the model with 0\.module in its place",
    ),
    "data parallel": (
        DataParallel,
        r"the model is wrapped in DataParallel: transform model\.module, then wrap the result",
        r"its submodule '0' is wrapped in DataParallel: transform the model with 0\.module in its place",
    ),
    "FSDP": (
        lambda module: FullyShardedDataParallel(module, device_id=torch.device("cpu")),
        r"the model is wrapped in FullyShardedDataParallel: transform the model before it is wrapped",
        r"its submodule '0' is wrapped in FullyShardedDataParallel: transform the model before it is wrapped",
    ),
    "FSDP2": (
        _sharded,
        r"the model is sharded by fully_shard \(FSDPSequential\): transform the model before that, then call fully_sh",
        r"its submodule '0' is sharded by fully_shard \(FSDPSequential\): transform the model before that",
    ),
    "tensor parallel": (
        _spread,
        r"0\.weight is spread over processes \(DTensor\): transform the model first, then spread the result",
        r"0\.0\.weight is spread over processes \(DTensor\): transform the model first, then spread the result",
    ),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", list(WRAPPED))
def test_wrapped_models_are_refused_with_what_to_do(name: str) -> None:
    wrap, whole, part = WRAPPED[name]
    _, x = build("linear")
    for make in (aimgraph.transform, aimgraph.plan):
        with pytest.raises(aimgraph.PlanError, match=whole):
            make(wrap(build("linear")[0]), x)
        below = nn.Sequential(wrap(build("linear")[0]), nn.Linear(3, 2))
        with pytest.raises(aimgraph.PlanError, match=part):
            make(below, x)
        around = nn.ModuleDict({"outer": wrap(build("linear")[0]), "plain": build("linear")[0]})
        with pytest.raises(aimgraph.PlanError, match=r"outer.* (wrapped|sharded|spread)"):
            make(around, x, within="plain")
