"""Which parts of a memory learn, which wait a step, and which never do."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph import ConfigError, PlanError
from tests.nets import build, run, updates_for

X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Net(nn.Module):
    """A chain, and a layer beside it whose output only the second result has."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.mid, self.beside = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 2, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.mid(torch.tanh(self.stem(x)))
        return self.head(torch.tanh(x).mean((2, 3))), self.beside(x)


def first(aim: Any) -> Any:
    return aim(X)[0].square().sum()


def both(aim: Any) -> Any:
    return sum(one.square().sum() for one in aim(X))


def statuses(report: aimgraph.TrainingReport) -> dict[str, str]:
    return {one.name.removeprefix("aim.memory."): one.status for one in report.tensors}


@pytest.mark.parametrize(("start", "first_to_learn"), [("zero_reads", "reads"), ("zero_values", "source")])
def test_one_factor_waits_for_the_other(start: str, first_to_learn: str) -> None:
    aim = aimgraph.transform(Net(), X, start=start)
    report = aimgraph.check_training(aim, both)
    assert report.never == report.not_in_use == ()
    assert {one.name.split(".")[2] for one in report.learns} == {first_to_learn}
    assert all(one.step == 2 and one.gradient > 0 for one in report.waits)
    assert len(report.learns) + len(report.waits) == len(list(aimgraph.memory_parameters(aim)))


@pytest.mark.parametrize("start", ["zero_reads", "zero_values", "drawn"])
@pytest.mark.parametrize("options", [{}, {"mode": "gated"}, {"carry": "state", "pool": "batch"}], ids=str)
@pytest.mark.parametrize("name", ["residual", "tokens", "linear", "functions"])
def test_every_part_of_a_memory_learns_by_the_third_step(name: str, options: dict[str, Any], start: str) -> None:
    base, x = build(name)
    aim = aimgraph.transform(base, x, start=start, shape=(2, 2, 3), **updates_for(base, x), **options).eval()
    report = aimgraph.check_training(aim, lambda aim: (run(aim, x) * torch.linspace(0.5, 1.5, 1)).square().sum())
    unread = {one.name.split(".")[3] for one in report.never}  # only the carried state has the last update
    assert unread == ({"1"} if name == "functions" and "carry" in options else set()), str(report)
    assert {one.reason for one in report.never} <= {"nothing that a site reads depends on it"}


def test_nothing_of_the_module_or_of_random_numbers_changes() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, updates="stages", carry="state").train()
    before, state = {key: value.clone() for key, value in aim.state_dict().items()}, torch.get_rng_state()
    told = str(aimgraph.check_training(aim, lambda aim: aim(x).square().sum()))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in aim.state_dict().items())
    assert all(parameter.grad is None for parameter in aim.parameters())
    assert told == str(aimgraph.check_training(aim, lambda aim: aim(x).square().sum()))


def test_a_loss_that_some_site_has_no_part_in() -> None:
    report = aimgraph.check_training(aimgraph.transform(Net(), X), first)
    (dead,) = report.never
    assert (dead.name, dead.reason) == (
        "aim.memory.reads.beside.weight",
        "the loss does not depend on what beside computes",
    )


def test_a_head_of_zeros() -> None:
    base = Net()
    nn.init.zeros_(base.head.weight)
    aim = aimgraph.transform(base, X)
    report = aimgraph.check_training(aim, lambda aim: (aim(X)[0] - 1).square().sum())
    reasons = {one.name.removeprefix("aim.memory."): one.reason for one in report.never}
    assert reasons.keys() == {"reads.stem.weight", "reads.mid.weight", "reads.beside.weight"}  # the head itself reads
    assert reasons["reads.stem.weight"].startswith("no gradient comes back to stem: what follows is zero")
    blind = aimgraph.transform(base, X, exclude=("head",))
    report = aimgraph.check_training(blind, lambda aim: (aim(X)[0] - 1).square().sum())
    assert report.learns == report.waits == ()
    assert report.tensors[0].reason.startswith("no gradient comes back to any site that reads it: what follows is")
    trained = aimgraph.check_training(aim, lambda aim: (aim(X)[0] - 1).square().sum(), base=True)
    assert [one.name for one in trained.never] == ["aim.memory.reads.beside.weight"]


def test_fixed_values_of_zero() -> None:
    aim = aimgraph.transform(Net(), X, start="zero_values")
    aim.get_parameter("aim.memory.source.value").requires_grad_(False)
    report = aimgraph.check_training(aim, both)
    assert {one.name: one.reason for one in report.never} == {
        "aim.memory.source.value": "fixed: it requires no gradient",
        **{
            f"aim.memory.reads.{site}.weight": "the values that it reads are zero and stay so: they are fixed"
            for site in ("stem", "mid", "beside", "head")
        },
    }


def test_fixed_reads_of_zero() -> None:
    aim = aimgraph.transform(Net(), X, start="zero_reads")
    aim.get_submodule("aim.memory.reads").requires_grad_(False)
    report = aimgraph.check_training(aim, both)
    reasons = {one.name: one.reason for one in report.never}
    assert reasons["aim.memory.source.value"] == "all weights that read it are zero and stay so: they are fixed"


def test_a_fixed_source_and_a_memory_that_is_switched_off() -> None:
    aim = aimgraph.transform(Net(), X, source="coordinates", shape=(4, 4, 2), trainable=False)
    (fixed,) = aimgraph.check_training(aim, both).never
    assert (fixed.name, fixed.reason) == ("aim.memory.source.value", "fixed: the memory was made with trainable=False")
    aimgraph.disable_memory(aim)
    assert {one.reason for one in aimgraph.check_training(aim, both).never} == {
        "the memory is switched off: aimgraph.enable_memory(aim)"
    }


def test_memory_sets() -> None:
    aim = aimgraph.transform(Net(), X, start="zero_values")
    aim.add_memory_set("b")
    assert {one.name.split(".")[1] for one in aimgraph.check_training(aim, both).not_in_use} == {"sets"}
    aim.use("b")
    report = aimgraph.check_training(aim, both)
    assert {one.name.split(".")[1] for one in report.not_in_use} == {"memory"}
    assert {one.name for one in report.learns} == {"aim.sets.b.memory.source.value"}
    aim.add_memory_set("c", share_reads=True)
    aim.use("c")
    report = aimgraph.check_training(aim, both)
    assert [one.name for one in report.learns] == ["aim.sets.c.memory.source.value"]
    assert {one.reason for one in report.never} == {"fixed: memory sets share it"}


def test_a_part_of_a_larger_model() -> None:
    whole = aimgraph.transform(nn.Sequential(Net()), X, within="0")
    report = aimgraph.check_training(whole, lambda model: model(X)[0].square().sum())
    assert [one.name for one in report.never] == ["0.aim.memory.reads.beside.weight"]
    assert report.never[0].reason == "the loss does not depend on what 0.beside computes"


def test_what_is_refused() -> None:
    base = Net()
    aim = aimgraph.transform(base, X)
    with pytest.raises(PlanError, match="has no memory"):
        aimgraph.check_training(base, both)
    for loss, message in (
        (nn.MSELoss(), r"loss is a MSELoss: give a function, loss\(aim\) -> number"),
        (3, "loss is a int"),
        (lambda aim: aim(X)[0], r"loss gives \[2, 4\]: it is to give a tensor of one number"),
        (lambda aim: 1.0, "loss gives float"),
        (lambda aim: first(aim).detach(), "the loss requires no gradient"),
        (lambda _: first(aim), "loss runs the module that is checked, .* write lambda aim:"),
    ):
        with pytest.raises(ConfigError, match=message):
            aimgraph.check_training(aim, loss)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"check_training\(steps=0\): give a whole number above 0"):
        aimgraph.check_training(aim, both, steps=0)
    with pytest.raises(ConfigError, match="check_training can't tell read weights"):
        aimgraph.check_training(aimgraph.transform(base, X, lowering="concat"), both)


def test_the_report_is_a_table_and_data() -> None:
    report = aimgraph.check_training(aimgraph.transform(Net(), X), first)
    text = str(report)
    for word in ("aim.memory.source.value", "step 2: waits", "3 learn, 1 wait a step, 1 never learn"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 120
    assert json.loads(json.dumps(report.to_dict()))["tensors"][0]["status"] in ("learns", "waits a step")
