"""What the plan says that each form costs is what the forms do."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import aimgraph
from aimgraph.bench.footprint import saved_bytes
from aimgraph.planning.plan import Plan
from aimgraph.planning.reads import FORMS
from tests.nets import NETS, build, randomise, run, updates_for


def flops(module: nn.Module, x: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run(module, x)
    return int(counter.get_total_flops())


def cost(plan: Plan, form: str, what: str) -> int:
    reads = [read for memory in plan.memories for read in memory.reads]
    return sum(getattr(found, what) for read in reads for found in read.costs if found.form == form)


def has_leaves(plan: Plan) -> bool:
    return any(call.opaque for memory in plan.memories for read in memory.reads for call in read.calls)


@pytest.mark.parametrize("name", sorted(NETS))
def test_products_are_those_that_torch_counts(name: str) -> None:
    base, x = build(name)
    plan = aimgraph.plan(base, x)
    base.train()
    for form in ("split", "concat"):
        aim = aimgraph.transform(base, x, lowering=form).train()
        if any(read.lowering != form for memory in aimgraph.plan(aim).memories for read in memory.reads):
            continue  # a site that can't take this form
        assert flops(aim, x) - flops(base, x) == cost(plan, form, "products")
    assert all([found.form for found in read.costs] == list(FORMS) for read in plan.memories[0].reads)


@pytest.mark.parametrize("name", ["residual", "linear"])
def test_products_of_written_memories_are_taken_for_every_sample(name: str) -> None:
    base, x = build(name)
    written = updates_for(base, x)
    plan, aim = aimgraph.plan(base, x, **written), aimgraph.transform(base, x, **written).train()
    numbers = range(len(plan.memories[0].updates))
    updates = sum(flops_of(aim.get_submodule(f"aim.memory.updates.{i}"), aim, x) for i in numbers)
    assert flops(aim, x) - flops(base.train(), x) - updates == cost(plan, "split", "products")
    assert cost(plan, "split", "products") > cost(aimgraph.plan(base, x), "split", "products") / 2


def flops_of(module: nn.Module, whole: nn.Module, x: Any) -> int:
    given: list[Any] = []
    hook = module.register_forward_hook(lambda _, args, kwargs, __: given.append((args, kwargs)), with_kwargs=True)
    run(whole, x)
    hook.remove()
    with FlopCounterMode(display=False) as counter:
        for args, kwargs in given:
            module(*args, **kwargs)
    return int(counter.get_total_flops())


def test_the_batch_is_that_of_the_example() -> None:
    base = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
    one, eight = (aimgraph.plan(base, torch.zeros(size, 3, 8, 8), shape=(4, 4, 1)) for size in (1, 8))
    assert cost(one, "split", "products") == cost(eight, "split", "products") == 2 * (8 * 9 * 36 + 16 * 4)
    for form, what in (("split", "sums"), ("concat", "products"), ("concat", "saved"), ("folded", "sums")):
        assert cost(eight, form, what) == 8 * cost(one, form, what) > 0
    assert cost(one, "folded", "flops") == 8 * 36  # nothing for the linear layer: its bias holds it
    assert cost(one, "concat", "saved") == 4 * (4 * 64 + (8 * 36 + 16))


def test_saved_bytes_are_those_that_are_saved() -> None:
    base = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 100, 4)),
    ).train()
    check_saved(base)


def test_the_windows_that_are_saved() -> None:
    check_saved(nn.Sequential(nn.Conv2d(3, 8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4)).train())


def check_saved(base: nn.Module) -> None:
    """Compare the plan with what hooks on saved tensors count."""
    x = torch.randn(4, 3, 10, 10)
    before = saved_bytes(base, lambda: base(x))
    for form in ("split", "concat"):
        aim = randomise(aimgraph.transform(base, x, shape=(10, 10, 2), lowering=form)).train()
        plan = aimgraph.plan(aim)
        added = saved_bytes(aim, lambda aim=aim: aim(x)) - before
        expected = cost(plan, form, "saved")
        # the first layer's input and the flat one's were kept for nothing else
        assert added == expected - (4 * 4 * 300 if form == "concat" else 0)


def test_the_costs_are_shown() -> None:
    base, x = build("residual")
    plan = aimgraph.plan(base, x)
    text = plan.text(costs=True)
    for word in ("'memory' in each form", "split,", "MFLOP", "kB kept", "added to a forward, and kept"):
        assert word in text
        assert word not in str(plan)
    data = plan.to_dict()["memories"][0]["reads"][0]["costs"]
    assert [item["form"] for item in data] == list(FORMS)
