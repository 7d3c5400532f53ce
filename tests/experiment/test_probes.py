"""Probes of trained memories, that all is put back, and what stood still."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.config import AimConfig
from aimgraph.experiment.probes import STRENGTHS, probed
from aimgraph.experiment.watch import Watch

ALWAYS = {"plain", "strength 1", "batch 1", *(f"strength {one:g}" for one in STRENGTHS)}
VALUES = {"mean", "shuffled", "swapped"}
CARRIED = {"state on", "state off", "permuted"}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


X, LABELS = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(5)), torch.arange(24) % 10


def trained(config: Any = None, *, frozen: bool = False, steps: int = 4, **options: Any) -> tuple[nn.Module, Any]:
    """A module after some steps, and its state before them."""
    given = {"config": config} if config else {"shape": (4, 4, 2), **options}
    aim = aimgraph.transform(network(), X[:2], **given)
    if frozen:
        aimgraph.freeze_base(aim)
    initial = {name: one.clone() for name, one in aim.state_dict().items()}
    optimiser = torch.optim.SGD([one for one in aim.parameters() if one.requires_grad], lr=0.5)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(aim.train()(X), LABELS).backward()
        optimiser.step()
    return aim, initial


@torch.no_grad()
def loss(module: nn.Module, batch: int | None = None, order: Tensor | None = None) -> float:
    """A score: minus the mean loss."""
    module.eval()
    index = torch.arange(len(X)) if order is None else order
    parts = index.split(batch or 8)
    return -sum(float(F.cross_entropy(module(X[part]), LABELS[part], reduction="sum")) for part in parts) / len(X)


def bits(tensor: Tensor) -> Any:
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def fingerprint(module: nn.Module) -> Any:
    """All that probing must not change."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return (
        [(name, id(one), bits(one)) for name, one in named],
        [one.training for one in module.modules()],
        [len(one._forward_hooks) for one in module.modules()],
        [one.write_in_eval for one in module.modules() if hasattr(one, "write_in_eval")],
        torch.random.get_rng_state().tolist(),
        random.getstate(),
    )


KINDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "static": ({}, ALWAYS | VALUES),
    "frozen": ({"frozen": True}, ALWAYS | VALUES),
    "zero values": ({"start": "zero_values"}, ALWAYS | VALUES),
    "concat": ({"lowering": "concat"}, ALWAYS | VALUES),
    "line": ({"shape": (32,)}, ALWAYS | VALUES),
    "one place": ({"shape": (1, 1, 4)}, ALWAYS | {"swapped"}),
    "coordinates": ({"source": "coordinates", "trainable": False}, ALWAYS | {"mean", "shuffled"}),
    "ones": ({"source": "ones_conv"}, ALWAYS | {"swapped"}),
    "update": ({"updates": "stages"}, ALWAYS | VALUES),
    "gated": ({"updates": "stages", "mode": "gated"}, ALWAYS | VALUES),
    "state": ({"updates": "stages", "carry": "state", "write_in_eval": True}, ALWAYS | VALUES | CARRIED),
    "two": (
        {"config": (AimConfig(shape=(4, 4, 2)), AimConfig(name="b", shape=(8,), updates="stages", carry="state"))},
        ALWAYS | VALUES | CARRIED,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_probes_of_every_kind_and_all_is_put_back(kind: str) -> None:
    options, names = KINDS[kind]
    aim, initial = trained(**options)
    before = fingerprint(aim.train(kind != "update"))
    found = probed(aim, X, loss, initial)
    assert fingerprint(aim) == before
    assert set(found) - {"reset"} == names
    assert ("reset" in found) == (kind != "coordinates")
    assert found["plain"] == found["strength 1"] == loss(aim)  # with what was carried, before this writes it
    with aimgraph.disable_memory(aim):
        off = loss(aim)
    if kind == "concat":
        assert found["strength 0"] == pytest.approx(off, abs=1e-5)
    else:
        assert found["strength 0"] == off
    assert found["strength 0.25"] != found["plain"] != found["strength 1.5"]
    if "permuted" not in found:
        assert found["batch 1"] == pytest.approx(found["plain"], abs=1e-4)


def test_the_strength_is_a_factor_on_what_reads_add() -> None:
    aim, _ = trained(sites=("9",))
    seen: dict[float, Tensor] = {}

    def score(module: nn.Module, batch: int | None, order: Tensor | None) -> float:
        with torch.no_grad():
            seen[len(seen)] = module.eval()(X)
        return 0.0

    names = list(probed(aim, X, score))
    outputs = dict(zip([name for name in names if name != "strength 1"], seen.values(), strict=True))
    with torch.no_grad(), aimgraph.disable_memory(aim):
        base = aim.eval()(X)
    for strength in STRENGTHS:
        torch.testing.assert_close(outputs[f"strength {strength:g}"], base + strength * (outputs["plain"] - base))


def test_values_of_probes() -> None:
    aim, initial = trained()
    source: Any = aim.get_submodule("aim.memory.source")
    seen: list[Tensor] = []

    def score(module: nn.Module, batch: int | None, order: Tensor | None) -> float:
        hook = source.register_forward_hook(lambda _, __, output: seen.append(output.detach().reshape(4, 4, 2)))
        loss(module)
        hook.remove()
        return float(len(seen))

    found = probed(aim, X, score, initial)
    value = {name: seen[int(place) - 1] for name, place in found.items()}
    now = source.value.detach().reshape(4, 4, 2)
    assert torch.equal(value["plain"], now)
    assert torch.equal(value["reset"], initial["aim.memory.source.value"].reshape(4, 4, 2))
    torch.testing.assert_close(value["mean"], now.mean((0, 1)).expand(4, 4, 2))
    pairs = {tuple(pair) for pair in now.reshape(-1, 2).tolist()}
    assert {tuple(pair) for pair in value["shuffled"].reshape(-1, 2).tolist()} == pairs
    assert not torch.equal(value["shuffled"], now)
    another = aimgraph.transform(network(), X[:2], shape=(4, 4, 2), seed=1).get_parameter("aim.memory.source.value")
    assert torch.equal(value["swapped"], another.detach().reshape(4, 4, 2))
    assert torch.equal(value["strength 0"], now)


def test_a_carried_state_that_is_off() -> None:
    aim, _ = trained(updates=("0", "3"), carry="state", write_in_eval=True, rate=0.5)
    carry: Any = aim.get_submodule("aim.memory.carry")
    begins: dict[int, Tensor] = {}
    ends: dict[int, Tensor] = {}
    orders: list[Any] = []

    def score(module: nn.Module, batch: int | None, order: Tensor | None) -> float:
        begins[len(orders)] = carry.state.clone()
        result = loss(module, batch, order)
        ends[len(orders)] = carry.state.clone()
        orders.append((batch, order))
        return result

    names = [name for name in probed(aim, X, score) if name not in ("strength 1", "state on")]
    off = names.index("state off")
    assert not begins[off].any()
    assert not ends[off].any()
    assert all(torch.equal(begins[place], carry.state) for place in begins if place != off)
    assert bool(carry.state.any())
    assert not torch.equal(ends[0], begins[0])  # eval-mode forwards write
    assert [place for place, (batch, _) in enumerate(orders) if batch == 1] == [names.index("batch 1")]
    [order] = [order for _, order in orders if order is not None]
    assert torch.equal(order.sort().values, torch.arange(len(X)))
    assert not torch.equal(order, torch.arange(len(X)))


@pytest.mark.parametrize("calls", [1, 2, 7, 12])
def test_all_is_put_back_where_the_score_raises(calls: int) -> None:
    aim, initial = trained(updates="stages", carry="state", write_in_eval=True)
    before, count = fingerprint(aim.train()), 0

    def score(module: nn.Module, batch: int | None, order: Tensor | None) -> float:
        nonlocal count
        loss(module, batch, order)
        torch.rand(3)
        with torch.no_grad():
            module.get_submodule("0").weight.add_(1)  # type: ignore[operator, union-attr]
        count += 1
        if count == calls:
            raise RuntimeError("the disk is full")
        return 0.0

    with pytest.raises(RuntimeError, match="the disk is full"):
        probed(aim, X, score, initial)
    assert fingerprint(aim) == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bad: float) -> None:
    aim, initial = trained()
    with torch.no_grad():
        aim.get_parameter("aim.memory.source.value")[3] = bad
    before = fingerprint(aim)
    found = probed(aim, X, loss, initial)
    assert fingerprint(aim) == before
    assert set(found) == ALWAYS | VALUES | {"reset"}
    assert found["reset"] == found["reset"]
    assert found["plain"] != found["plain"]


def test_what_has_no_memory_has_no_probes() -> None:
    def never(module: nn.Module, batch: int | None, order: Tensor | None) -> float:
        raise AssertionError

    assert probed(network(), X, never) == {}


def test_a_memory_within_a_part_is_probed() -> None:
    model = nn.Sequential(network()[:7], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))  # type: ignore[index]
    whole = aimgraph.transform(model, X[:2], within="0", shape=(4, 4, 2))
    initial = {name: one.clone() for name, one in whole.state_dict().items()}
    with torch.no_grad():
        whole.get_parameter("0.aim.memory.source.value").mul_(2)
        whole.get_parameter("0.aim.memory.reads.3.weight").normal_()
    before = fingerprint(whole)
    found = probed(whole, X, loss, initial, also=(2.0,))
    assert fingerprint(whole) == before
    assert set(found) == ALWAYS | VALUES | {"reset", "strength 2"}
    assert found["reset"] != found["plain"]


# what stood still


def watched(aim: nn.Module, steps: int, forward: Callable[[], Tensor]) -> Watch:
    learns = {name: one for name, one in aim.named_parameters() if name.startswith("aim.") and one.requires_grad}
    watch, optimiser = Watch(learns), torch.optim.SGD(aim.parameters(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        forward().backward()
        watch.step()
        optimiser.step()
    return watch


def test_what_learns_is_not_named() -> None:
    aim = aimgraph.transform(network(), X[:2], shape=(4, 4, 2))
    watch = watched(aim, 1, lambda: F.cross_entropy(aim(X), LABELS))
    assert watch.still() == ["aim.memory.source.value"]  # read weights of zero pass no gradient on at the first step
    watch = watched(aim, 1, lambda: F.cross_entropy(aim(X), LABELS))
    assert watch.still() == []


def test_values_and_read_weights_that_are_all_zero_are_named() -> None:
    aim = aimgraph.transform(network(), X[:2], shape=(4, 4, 2), start="zero_values")
    with torch.no_grad():
        for name, one in aim.named_parameters():
            if ".reads." in name:
                one.zero_()
    watch = watched(aim, 3, lambda: F.cross_entropy(aim(X), LABELS))
    assert watch.still() == list(watch.learns)
    assert len(watch.learns) == 5


def test_a_memory_that_is_never_read_is_named() -> None:
    aim = aimgraph.transform(network(), X[:2], shape=(4, 4, 2))

    def forward() -> Tensor:
        with aimgraph.disable_memory(aim):
            return F.cross_entropy(aim(X), LABELS)

    watch = watched(aim, 2, forward)
    assert watch.still() == list(watch.learns)


def test_a_read_that_the_loss_does_not_depend_on_is_named() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(x), self.other(x)

    x = torch.randn(4, 8)
    aim = aimgraph.transform(TwoHeads(), x, shape=(6,))
    watch = watched(aim, 3, lambda: aim(x)[0].square().sum())
    assert watch.still() == ["aim.memory.reads.other.weight"]


def test_what_has_gradients_and_does_not_move_is_named_and_so_is_what_moves_without() -> None:
    held, moved, both = (nn.Parameter(torch.ones(3)) for _ in range(3))
    watch = Watch({"held": held, "moved": moved, "both": both})
    (held.sum() + both.sum()).backward()
    watch.step()
    with torch.no_grad():
        moved.mul_(0.9)
        both.mul_(0.9)
    assert watch.still() == ["held", "moved"]
    assert watch.seen == {"held", "both"}
    again = Watch({"held": held, "moved": moved, "both": both}, seen=[*watch.seen, "gone"])
    assert again.seen == watch.seen
    assert again.still() == ["held", "moved", "both"]
