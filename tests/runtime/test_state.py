"""The carried state, alone and in a network, against a slow reference."""

import copy
import io
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

import aimgraph
from aimgraph.runtime.state import StateCarry
from tests.nets import build, randomise

RATE = 0.25


def stateful(**options: object) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    base, x = build("residual", torch.float64)
    options = {"shape": (2, 2, 3), "updates": "stages", "carry": "state", "rate": RATE} | options
    aim = randomise(aimgraph.transform(base, x, **options))
    return base, aim, x


def steady(aim: nn.Module) -> nn.Module:
    """Train mode, without what another forward on the same inputs would do otherwise."""
    for module in aim.train().modules():
        if isinstance(module, nn.Dropout | nn.BatchNorm2d) or type(module).__name__ == "DropPath":
            module.eval()
    return aim


def state_of(aim: nn.Module) -> torch.Tensor:
    return aim.get_buffer("aim.memory.carry.state")


def test_read_and_write() -> None:
    carry = StateCarry(3, RATE, write_in_eval=False)
    source, last = torch.randn(1, 3), torch.randn(4, 3)
    assert torch.equal(carry(source), source)
    assert carry(source, last) is None
    assert torch.allclose(carry.state, RATE * (last.mean(0) - source[0]))
    first = carry.state.clone()
    carry(source, last)
    assert torch.allclose(carry.state, (1 - RATE) * first + RATE * (last.mean(0) - source[0]))
    assert torch.equal(carry(source), source + carry.state)


def test_state_is_carried_to_the_next_batch() -> None:
    """The output for batch b after batch a differs from that after a reset, by what a reference gives.

    The reference is a copy of the network whose source holds source + state, computed by hand from
    the last memory of batch a, and whose own state is zero.
    """
    _, aim, a = stateful()
    b = torch.randn_like(a)
    aim.train()
    for drop in [m for m in aim.modules() if isinstance(m, nn.Dropout) or type(m).__name__ == "DropPath"]:
        drop.eval()
    source = aim.get_parameter("aim.memory.source.value")
    last = {}
    update = aim.get_submodule("aim.memory.updates")[-1]
    hook = update.register_forward_hook(lambda _m, _i, out: last.update(value=out.detach()))
    aim(a)
    hook.remove()
    expected_state = RATE * (last["value"].mean(0) - source.detach())
    assert (state_of(aim) - expected_state).abs().max() < 1e-12

    aim.eval()
    after_a = aim(b)
    reference = copy.deepcopy(aim)
    reference.reset_memory()
    after_reset = reference(b)
    with torch.no_grad():
        reference.get_parameter("aim.memory.source.value").add_(expected_state)
    assert (after_a - after_reset).abs().max() > 1e-6
    assert (after_a - reference(b)).abs().max() < 1e-12


def test_eval_does_not_write_unless_asked() -> None:
    _, aim, x = stateful()
    aim.eval()(x)
    assert not state_of(aim).any()
    _, aim, x = stateful(write_in_eval=True)
    aim.eval()(x)
    assert state_of(aim).any()


def test_state_survives_a_state_dict_round_trip() -> None:
    _, aim, x = stateful()
    aim.train()(x)
    _, other, _ = stateful()
    other.load_state_dict(aim.state_dict())
    assert state_of(aim).any()
    assert torch.equal(state_of(other), state_of(aim))
    assert torch.equal(other.eval()(x), aim.eval()(x))


def test_reset_memory() -> None:
    _, aim, x = stateful()
    fresh = aim.eval()(x)
    state_of(aim).fill_(3.0)
    assert not torch.equal(aim(x), fresh)
    aim.reset_memory()
    assert not state_of(aim).any()
    assert torch.equal(aim(x), fresh)


def test_the_state_has_no_gradient() -> None:
    _, aim, x = stateful()
    aim.train()
    aim(x).sum().backward()
    aim(x).sum().backward()
    assert not state_of(aim).requires_grad


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_writes_once_and_recomputes_the_same(reentrant: bool) -> None:
    _, aim, x = stateful()
    steady(aim)
    plain = copy.deepcopy(aim)
    for _ in range(2):
        inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        plain.zero_grad(), aim.zero_grad()
        plain(inputs[0]).square().sum().backward()
        checkpoint(aim, inputs[1], use_reentrant=reentrant).square().sum().backward()
        assert torch.equal(state_of(aim), state_of(plain))
        assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-12)
        for name, parameter in plain.named_parameters():
            other = aim.get_parameter(name).grad
            assert (parameter.grad is None) == (other is None), name
            assert parameter.grad is None or torch.allclose(parameter.grad, other, atol=1e-12), name


def test_export_does_not_write() -> None:
    _, aim, x = stateful()
    for mode in (True, False):
        torch.export.export(aim.train(mode), (x,), strict=False)
    assert not state_of(aim).any()


LOWERED: dict[str, Callable[[nn.Module, tuple[torch.Tensor]], Any]] = {
    "export": lambda module, inputs: torch.export.export(module, inputs, strict=False),
    "jit": lambda module, inputs: torch.jit.trace(module, inputs, check_trace=False),
    "onnx": lambda module, inputs: torch.onnx.export(module, inputs, io.BytesIO(), dynamo=False, verbose=False),
}


@pytest.mark.parametrize("way", LOWERED)
@pytest.mark.parametrize("kind", ["whole", "part", "folded", "set"])
@pytest.mark.filterwarnings("ignore")
def test_what_would_lose_a_write_in_eval_is_refused(way: str, kind: str) -> None:
    _, aim, x = stateful(write_in_eval=True, name="kept")
    module = aim.eval()
    if kind == "set":
        aim.add_memory_set("b")
        aim.use("b")
    elif kind != "whole":
        module = nn.Sequential(aimgraph.fold(aim) if kind == "folded" else aim, nn.ReLU()).eval()
    with pytest.raises(aimgraph.ExportError, match="memory 'kept' writes its carried state in eval mode") as raised:
        LOWERED[way](module, (x,))
    assert "write_in_eval=False" in str(raised.value)
    with aimgraph.disable_memory(aim):
        LOWERED["export"](aim, (x,))
    assert not any(buffer.any() for name, buffer in aim.named_buffers() if name.endswith("carry.state"))


def test_disabled_memory_does_not_write() -> None:
    _, aim, x = stateful()
    with aimgraph.disable_memory(aim):
        aim.train()(x)
    assert not state_of(aim).any()


def _rank(rank: int, port: int, results: "multiprocessing.Queue[tuple[int, list[float]]]") -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    carry = StateCarry(2, 1.0, write_in_eval=False)
    carry.process_group = dist.group.WORLD
    samples = 1 + 2 * rank  # one sample of 0 on rank 0, three of 4 on rank 1
    found: list[float] = []
    for value in (4.0 * rank, float("nan") if rank else 8.0, float("inf")):  # of one process, and of all, an overflow
        carry(torch.zeros(1, 2), torch.full((samples, 2), value))
        found += carry.state[:1].tolist()
    results.put((rank, found))
    dist.barrier()
    dist.destroy_process_group()


def test_a_process_group_weights_by_samples() -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    port = 20_000 + os.getpid() % 20_000
    workers = [context.Process(target=_rank, args=(rank, port, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    states = dict(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(30)
    assert states == {0: [3.0, 8.0, 8.0], 1: [3.0, 8.0, 8.0]}


@pytest.mark.parametrize("reentrant", [False, True])
def test_two_checkpointed_forwards_before_one_backward_are_refused(reentrant: bool) -> None:
    _, aim, x = stateful()
    aim.train()

    def forward(sample: torch.Tensor) -> torch.Tensor:
        return checkpoint(aim, sample.requires_grad_(), use_reentrant=reentrant).square().sum()

    total = sum(forward(x + i) for i in range(2))
    with pytest.raises(RuntimeError, match="2 forwards before one backward pass, under activation checkpointing"):
        total.backward()
    del total
    forward(x.clone()).backward()  # and then it goes on


def test_a_forward_whose_loss_is_thrown_away_does_not_count() -> None:
    _, aim, x = stateful()
    plain = copy.deepcopy(steady(aim))
    for _ in range(3):
        checkpoint(aim, x, use_reentrant=False)
        with torch.autograd.graph.save_on_cpu():
            aim(x).sum().backward()
        checkpoint(aim, x, use_reentrant=False).sum().backward()
        plain(x)
        for _ in range(2):
            plain(x).sum().backward()
        torch.testing.assert_close(state_of(aim), state_of(plain))
        for (name, one), other in zip(aim.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_an_empty_batch_writes_nothing() -> None:
    _, aim, x = stateful()
    aim.train()(x)
    before = copy.deepcopy(aim.state_dict())
    assert aim(x[:0]).shape == (0, 4)
    for name, value in aim.state_dict().items():
        if name.startswith("aim.") and "num_batches" not in name:
            assert torch.equal(value, before[name]), name


def test_a_pooled_memory_is_weighted_by_its_samples() -> None:
    seen = []
    _, aim, x = stateful(pool="batch")
    carry = aim.get_submodule("aim.memory.carry")
    write = carry._write
    carry._write = lambda source, last, samples: (seen.append((last.shape[0], samples)), write(source, last, samples))
    aim.train()(torch.cat([x, x, x]))
    assert seen == [(1, 3 * x.shape[0])]


def test_an_mlp_with_state_written_out_by_hand() -> None:
    """Three batches through linear -> tanh -> linear, every value computed without the package."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 5, 3, dtype=torch.float64)
    aim = randomise(aimgraph.transform(base, x[0], shape=(6,), updates=("1",), carry="state", rate=RATE)).train()
    p = {name: value.detach() for name, value in aim.named_parameters()}
    source = p["aim.memory.source.value"]
    state = torch.zeros(6, dtype=torch.float64)
    for batch in x:
        rows, written = [], []
        for sample in batch:
            m0 = source + state
            h = p["0.weight"] @ sample + p["0.bias"] + p["aim.memory.reads.0.weight"] @ m0
            h = torch.tanh(h)
            u = "aim.memory.updates.0."
            hidden = torch.sigmoid(p[u + "hidden.0.weight"] @ torch.cat([h, m0]) + p[u + "hidden.0.bias"])
            m1 = p[u + "head.weight"] @ hidden + p[u + "head.bias"]
            rows.append(p["2.weight"] @ h + p["2.bias"] + p["aim.memory.reads.2.weight"] @ m1)
            written.append(m1)
        assert (aim(batch) - torch.stack(rows)).abs().max() < 1e-12
        state = (1 - RATE) * state + RATE * (torch.stack(written).mean(0) - source)
        assert (state_of(aim) - state).abs().max() < 1e-12
