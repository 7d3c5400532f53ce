"""The report on a transformed module."""

import copy
import math
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.runtime.accumulate import accumulate
from tests.nets import build, randomise


@pytest.mark.parametrize("name", ["residual", "functional_dropout", "tokens", "grouped"])
def test_a_fresh_transform_verifies(name: str) -> None:
    base, x = build(name)
    aim = aimgraph.transform(base, x)
    report = aimgraph.verify(base, aim)
    assert report.ok, str(report)
    assert len(report.checks) == 10
    assert report.max_difference == 0
    assert report.to_dict()["ok"] is True
    assert "bit-identical" in str(report)


@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_a_trained_memory_verifies_and_differs(lowering: str) -> None:
    base, x = build("grouped")
    aim = randomise(aimgraph.transform(base, x, lowering=lowering))
    report = aimgraph.verify(base, aim)
    assert report.ok, str(report)
    assert report.max_difference > 1e-3


def test_a_changed_base_is_found() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x)
    with torch.no_grad():
        aim.get_parameter("head.bias").add_(1)
    report = aimgraph.verify(base, aim)
    assert not report.ok
    assert {check.name for check in report.checks if not check.ok} >= {"base weights are unchanged"}
    assert "FAILED" in str(report)


@pytest.mark.parametrize("name", ["residual", "functional_dropout", "tokens", "grouped"])
def test_a_read_that_does_not_arrive_is_found(name: str) -> None:
    base, x = build(name)
    aim = aimgraph.transform(base, x)
    for graph in (graph for name, graph in aim._record.graphs.items() if name.startswith("aim.")):
        term = graph.find_nodes(op="call_function", target=accumulate)[-1]
        term.replace_all_uses_with(term.args[0])
        graph.erase_node(term)
    aim._record.compiled.clear()
    aim._select()
    wrong = {check.name for check in aimgraph.verify(base, aim).checks if not check.ok}
    assert wrong == {f"output, with reads added by hand ({mode})" for mode in ("eval", "train")}


def test_a_read_with_the_weight_of_another_is_found() -> None:
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base, x))
    first, *others = (read for read in aimgraph.plan(aim).memories[0].reads)
    other = next(read for read in others if (read.channels, read.parameters) == (first.channels, first.parameters))
    for graph in (graph for name, graph in aim._record.graphs.items() if name.startswith("aim.")):
        for node in graph.find_nodes(op="call_module", target=f"aim.memory.reads.{first.name}"):
            node.target = f"aim.memory.reads.{other.name}"
    aim._record.compiled.clear()
    aim._select()
    wrong = {check.name for check in aimgraph.verify(base, aim).checks if not check.ok}
    assert wrong == {f"output, with reads added by hand ({mode})" for mode in ("eval", "train")}


def test_a_frozen_base_and_a_disabled_memory_are_at_work_in_the_copy() -> None:
    base, x = build("residual")
    aim = aimgraph.disable_memory(aimgraph.freeze_base(randomise(aimgraph.transform(base, x)))).aim
    report = aimgraph.verify(base, aim)
    assert report.ok, str(report)
    assert report.max_difference > 1e-3
    assert not aim.get_parameter("head.bias").requires_grad
    assert torch.equal(aim.eval()(x), base.eval()(x))


@pytest.mark.parametrize("options", [{"lowering": "concat"}, {"updates": "stages"}])
def test_what_is_not_compared_is_told(options: dict[str, Any]) -> None:
    base, x = build("residual")
    checks = aimgraph.verify(base, aimgraph.transform(base, x, **options)).checks
    assert [check.detail.partition(":")[0] for check in checks if "by hand" in check.name] == ["not compared"] * 2


def test_nothing_changes() -> None:
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base, x, updates="stages", carry="state"))
    before = {key: value.clone() for key, value in aim.state_dict().items()}
    rng = torch.get_rng_state()
    aimgraph.verify(base, aim)
    assert all(torch.equal(value, aim.state_dict()[key]) for key, value in before.items())
    assert torch.equal(rng, torch.get_rng_state())


def test_only_transformed_modules() -> None:
    base, _ = build("residual")
    with pytest.raises(aimgraph.PlanError, match=r"verify needs the result of aimgraph\.transform, this is a Residual"):
        aimgraph.verify(base, base)


@dataclass
class Output:
    logits: Tensor


class Listed(dict[str, Tensor]):
    pass


class Wrapped(nn.Module):
    """Gives its tensors in a structure of its own, and keeps a norm in eval mode."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.mix, self.norm, self.kind = nn.Linear(4, 4), nn.BatchNorm1d(4), kind

    def train(self, mode: bool = True) -> "Wrapped":
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Any:
        return self.kind(logits=self.norm(self.mix(x)))


@pytest.mark.parametrize("kind", [Output, Listed])
def test_tensors_in_structures_of_ones_own_are_compared(kind: type) -> None:
    base, x = Wrapped(kind), torch.randn(3, 4)
    aim = aimgraph.transform(base, x)
    assert aimgraph.verify(base, aim, x).ok
    with torch.no_grad():
        aim.get_parameter("mix.bias").add_(1)
    wrong = {check.name for check in aimgraph.verify(base, aim, x).checks if not check.ok}
    assert {"output, with memory (eval)", "output, with memory (train)", "gradients of the base"} <= wrong


class Longer(nn.Module):
    """Values decide how often its layer is called."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        return self.mix(torch.tanh(y)) if x.mean() > 0 else y


class Around(nn.Module):
    """The same layer inside what can't be traced, before, between and after."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.part, self.out = Longer(self.mix), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.part(self.mix(torch.relu(self.part(self.mix(x))))))


class ByMode(nn.Module):
    """The calls of its layer are others in train mode; on sequences they differ by their place."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            x = x * 2
        early = self.mix(x[:, None].expand(-1, 3, -1)[:, :2]).mean(1) if self.training else 0
        return self.out(self.mix(x[:, None].expand(-1, 3, -1)).mean(1) + early)


class Directly(nn.Module):
    """Calls the forward of a layer, which is no call of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix.forward(x) + self.mix(torch.tanh(self.mix.forward(x * 2))) + F.linear(x, self.mix.weight)


class DirectlyUntraced(Directly):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() < 1e9 else -x)


@pytest.mark.parametrize("kind", [Around, ByMode, Directly, DirectlyUntraced])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("wrapped", [True, False])
def test_calls_are_found_where_they_are_made(kind: Callable[[], nn.Module], seed: int, wrapped: bool) -> None:
    torch.manual_seed(seed)
    base, x = kind(), torch.randn(2, 4)
    base = nn.Sequential(nn.Linear(4, 4), base) if wrapped else base
    report = aimgraph.verify(base, aimgraph.transform(base, x, shape=(7, 1, 1)))
    assert report.ok, str(report)


def test_one_that_was_made_before_calls_had_names() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x)
    (memory,) = aim._record.plan.memories
    reads = tuple(replace(r, calls=tuple(replace(c, name="") for c in r.calls)) for r in memory.reads)
    aim._record.plan = replace(aim._record.plan, memories=(replace(memory, reads=reads),))
    report = aimgraph.verify(base, aim)
    assert report.ok
    assert "made before plans named their calls" in str(report)


class Shaken(torch.autograd.Function):
    """Draws random numbers in both passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * torch.rand(len(x), 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * torch.rand(len(gradient), 1)


class Backward(nn.Module):
    """Its backward pass draws random numbers, or finds overwritten what it needs."""

    def __init__(self, overwrites: bool) -> None:
        super().__init__()
        self.mix, self.overwrites = nn.Linear(4, 4), overwrites

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x).exp()
        return x.mul_(2) if self.overwrites else Shaken.apply(x)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("overwrites", [True, False])
def test_backward_passes_of_ones_own(overwrites: bool) -> None:
    base, x = nn.Sequential(nn.Linear(4, 4), Backward(overwrites)), torch.randn(3, 4)
    report = aimgraph.verify(base, aimgraph.transform(base, x))
    assert report.ok, str(report)
    (check,) = (check for check in report.checks if check.name == "gradients of the base")
    assert ("modified by an inplace operation" in check.detail) == overwrites
    assert ("bit-identical" in check.detail) != overwrites


def test_a_norm_that_the_base_keeps_in_eval_mode_stays_there() -> None:
    base, x = Wrapped(Output), torch.randn(3, 4)
    made = aimgraph.transform(base, x)
    for aim in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        base.train(), aim.train()
        assert [m.training for m in (aim, aim.mix, aim.norm, aim.aim)] == [True, True, False, True]
        assert torch.equal(aim(x).logits, base(x).logits)
        assert torch.equal(aim.norm.running_mean, base.norm.running_mean)


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> int:
        return len(self.mix(x))


def test_an_output_without_tensors_is_no_proof() -> None:
    base, x = Nothing(), torch.randn(3, 4)
    report = aimgraph.verify(base, aimgraph.transform(base, x), x)
    assert not report.ok
    assert "no tensor is found in the output" in str(report)


def test_not_a_number_equals_itself() -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).log()

    base, x = nn.Sequential(Broken(4, 4)), torch.randn(3, 4)
    assert aimgraph.verify(base, aimgraph.transform(base, x), x).ok


def test_the_deterministic_mode_is_put_back() -> None:
    base, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    aim = aimgraph.transform(base, x)
    assert aimgraph.verify(base, aim, x).ok
    assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert aimgraph.verify(base, aim, x).ok
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


class _Packed(nn.Module):
    """Takes indices and lengths, not all of which are valid."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.scan, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        x = self.mix(self.embed(tokens))
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        padded, _ = nn.utils.rnn.pad_packed_sequence(self.scan(packed)[0], batch_first=True)
        return self.head(padded.mean(1))


class _Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(x[mask])


@pytest.mark.parametrize(
    ("base", "inputs"),
    [
        (_Packed(), (torch.arange(15).reshape(3, 5) % 10, torch.tensor([5, 3, 2]))),
        (_Masked(), (torch.randn(4, 8), torch.tensor([True, False, True, True]))),
    ],
)
def test_numbers_are_those_of_the_example(base: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    aim = aimgraph.transform(base, inputs)
    assert aimgraph.plan(aim).covered >= 1
    assert torch.equal(aim(*inputs), base(*inputs))
    assert aimgraph.verify(base, pickle.loads(pickle.dumps(aim))).ok


class _Extra(nn.Module):
    """Draws from Python's and numpy's random numbers, and keeps more than tensors in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * random.random() * float(np.random.rand())


def test_bases_that_draw_from_python_and_keep_an_extra_state() -> None:
    base = _Extra()
    aim = aimgraph.transform(base, torch.randn(2, 4))
    report = aimgraph.verify(base, aim)
    assert report.ok, report


def test_each_part_of_a_larger_model_is_compared() -> None:
    base = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 3)))
    whole = aimgraph.transform(base, torch.randn(2, 4), within="0")
    report = aimgraph.verify(base, whole)
    assert report.ok
    assert all(check.name.startswith("0: ") for check in report.checks)
    with torch.no_grad():
        whole.get_submodule("0.0").weight.mul_(2)
    assert not aimgraph.verify(base, whole).ok
    with pytest.raises(aimgraph.PlanError, match="0 is transformed, and Linear has no such module"):
        aimgraph.verify(nn.Linear(4, 3), whole)


def test_where_nothing_can_be_compared() -> None:
    with torch.device("meta"):
        base = nn.Sequential(nn.Linear(4, 3))
    aim = aimgraph.transform(base, torch.zeros(2, 4, device="meta"))
    with pytest.raises(aimgraph.PlanError, match="there are none on the meta device"):
        aimgraph.verify(base, aim)
    packed = _Packed()
    aim = aimgraph.transform(packed, (torch.zeros(3, 5, dtype=torch.long), torch.tensor([5, 3, 2])))
    with pytest.raises(aimgraph.ExampleInputError, match=r"does not run on random inputs.*give example inputs"):
        aimgraph.verify(packed, aim, (torch.zeros(3, 5, dtype=torch.long), torch.tensor([5, 0, 2])))


def spoiled(module: nn.Module, name: str) -> nn.Module:
    """The module, with one not-a-number in a tensor of it."""
    with torch.no_grad():
        module.state_dict()[name].reshape(-1)[0] = float("nan")
    return module


@pytest.mark.parametrize("name", ["head.bias", "stem.0.weight"])
def test_not_a_number_in_a_weight_of_the_base_is_named(name: str) -> None:
    base, x = build("residual")
    spoiled(base, name)
    report = aimgraph.verify(base, aimgraph.transform(base, x))
    assert not report.ok
    (check,) = (check for check in report.checks if check.name == "values are numbers")
    assert not check
    assert name in check.detail


@pytest.mark.parametrize("end", ["source.value", "carry.state", "reads.head.weight"])
def test_not_a_number_in_a_memory_is_named(end: str) -> None:
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base, x, shape=(2, 2, 3), updates="stages", carry="state"))
    name = f"aim.memory.{end}"
    details = [check.detail for check in aimgraph.verify(base, spoiled(aim, name)).checks if not check]
    assert any(name in detail for detail in details)


def test_not_a_number_in_a_set_that_is_not_in_use_is_named() -> None:
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base, x))
    aim.add_memory_set("b")
    name = "aim.sets.b.memory.source.value"
    assert name in str(aimgraph.verify(base, spoiled(aim, name)).checks[-1].detail)


def test_not_a_number_in_a_statistic_is_named_where_it_is_seen() -> None:
    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    aim = aimgraph.transform(base, torch.randn(2, 3, 6, 6))
    assert aimgraph.verify(base, aim)
    for module in (base, aim):
        spoiled(module, "1.running_mean")
    failed = [check.detail for check in aimgraph.verify(base, aim).checks if not check]
    assert len(failed) == 1
    assert "(eval) of the base, and in 1.running_mean (1 of 4 values)" in failed[0]


class Root(nn.Module):
    """Gives not-a-number where what it takes the root of is negative: at some places, or everywhere."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.mix, self.shift = nn.Linear(4, 6), shift

    def forward(self, x: Tensor) -> Tensor:
        return (self.mix(x) + self.shift).sqrt()


def test_not_a_number_from_random_inputs_is_told_and_no_failure_while_something_can_be_compared() -> None:
    x = torch.randn(2, 4)
    for shift, ok in ((100.0, True), (0.0, True), (-100.0, False)):
        base = Root(shift)
        report = aimgraph.verify(base, aimgraph.transform(base, x))
        told = [check for check in report.checks if check.name == "values are numbers"]
        assert report.ok is ok is bool(report)
        assert len(told) == (shift < 100)
        assert all("not-a-number at " in check.detail and "of the base" in check.detail for check in told)


def test_not_a_number_that_a_memory_makes_is_told() -> None:
    base = Root(100.0)
    aim = randomise(aimgraph.transform(base, torch.randn(2, 4)))
    with torch.no_grad():
        aim.get_parameter("aim.memory.source.value").fill_(1e4)
        aim.get_parameter("aim.memory.reads.mix.weight").fill_(-1.0)
    failed = [check.detail for check in aimgraph.verify(base, aim).checks if not check]
    assert failed == ["not-a-number in the output at batch size 2 (eval) with memory, and numbers there without"]


def test_a_report_is_true_where_it_is_ok() -> None:
    base, x = build("linear")
    aim = aimgraph.transform(base, x)
    assert aimgraph.verify(base, aim)
    with torch.no_grad():
        next(iter(aim.parameters())).add_(1)
    report = aimgraph.verify(base, aim)
    assert not report
    assert [bool(check) for check in report.checks] == [check.ok for check in report.checks]


class Dropped(nn.Module):
    """A read of its own: a linear map of what dropout leaves of the memory, the same at every place."""

    def __init__(self, spec: aimgraph.ReadSpec) -> None:
        super().__init__()
        self.grid, self.channels = spec.grid, spec.shape[-1]
        self.map = nn.Linear(math.prod(spec.shape), self.channels, bias=False)
        nn.init.zeros_(self.map.weight)

    def forward(self, memory: Tensor) -> Tensor:
        term = self.map(F.dropout(memory.flatten(1), 0.5, self.training))
        return term.view(-1, *(1 for _ in self.grid), self.channels).expand(-1, *self.grid, -1)


def test_reads_that_draw_random_numbers_leave_the_base_its_own() -> None:
    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.3), nn.Conv2d(4, 4, 3), nn.Dropout(0.3))
    aim = aimgraph.transform(base, torch.randn(2, 3, 8, 8), config=aimgraph.AimConfig(read=Dropped))
    state = torch.get_rng_state()
    assert aimgraph.verify(base, aim.eval()).ok
    report = aimgraph.verify(base, aim.train())
    assert torch.equal(torch.get_rng_state(), state)
    assert report.ok, report
    said = next(check for check in report.checks if check.name == "random numbers of the memory")
    assert not said.compared
    assert "aim.memory." in said.detail
    base[0].weight.data += 1e-3  # what the random numbers must not hide
    assert not aimgraph.verify(base, aim).ok
    assert not any("random numbers" in check.name for check in aimgraph.verify(*plain()).checks)


def plain() -> tuple[nn.Module, nn.Module]:
    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.3))
    return base, aimgraph.transform(base, torch.randn(2, 3, 8, 8))


class Neighbours(nn.Module):
    """Every node gets its neighbours' mean: the batch is that of the nodes, which the edges number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]))


def test_where_edges_number_the_nodes_the_examples_sizes_are_taken() -> None:
    base, edges = Neighbours(), torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])
    aim = aimgraph.transform(base, (torch.randn(6, 5), edges))
    report = aimgraph.verify(base, aim)
    assert report.ok, report
    assert "bit-identical at batch sizes [6, 7]" in str(report)
    with torch.no_grad():
        aim.first.weight[0, 0] += 1e-3
    assert not aimgraph.verify(base, aim).ok


class Described(nn.Module):
    """Its checkpoints say how it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return super().state_dict(*args, **kwargs) | {"made_with": {"width": 3}}


def test_what_a_class_adds_to_its_checkpoints_counts_as_no_difference() -> None:
    base = Described()
    aim = aimgraph.transform(base, torch.randn(2, 3))
    assert aimgraph.verify(base, aim).ok
    aim.linear.register_buffer("further", torch.zeros(1))
    assert not aimgraph.verify(base, aim).ok


class DrawnBySize(nn.Module):
    """Draws a mask for each size of input, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None or self.mask.shape != x.shape:
            self.mask = torch.rand_like(x)
        return self.linear(x * self.mask)


def test_the_base_draws_its_own_in_what_is_kept_as_one_call() -> None:
    base = DrawnBySize()
    aim = aimgraph.transform(base, torch.randn(2, 3))
    report = aimgraph.verify(base, aim)
    assert report.ok, report
    assert not any("random numbers" in check.name for check in report.checks)


class ThroughNumpy(nn.Module):
    """Runs without gradients only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.from_numpy(np.tanh(self.first(x).numpy())))


class IntoAnother(ThroughNumpy):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(torch.mul(h, 2, out=torch.empty_like(h)))


@pytest.mark.parametrize("kind", [ThroughNumpy, IntoAnother])
def test_a_base_that_runs_without_gradients_only_is_compared_without(kind: type[nn.Module]) -> None:
    base = kind().eval()
    aim = aimgraph.transform(base, torch.randn(2, 3))
    report = aimgraph.verify(base, aim)
    assert report.ok, report
    (gradients,) = (check for check in report.checks if check.name == "gradients of the base")
    assert not gradients.compared
    assert "requires grad" in gradients.detail
    with torch.no_grad():
        aim.second.weight[0, 0] += 1  # type: ignore[index,operator]
    assert not aimgraph.verify(base, aim).ok


class Counting(nn.Module):
    """Gives its own count of calls, a buffer that it writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.add_(1)  # type: ignore[operator]
        return self.linear(x), self.calls


def test_an_output_that_the_next_call_writes_is_compared_as_it_was() -> None:
    base = Counting()
    report = aimgraph.verify(base, aimgraph.transform(base, torch.randn(2, 3)))
    assert report.ok, report
