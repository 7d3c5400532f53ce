"""torch.compile takes every form as one graph, and no second one for another batch size."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

import aimgraph
from tests.marks import mostly_slow
from tests.nets import randomise

X, OTHER = torch.randn(4, 3, 16, 16), torch.randn(6, 3, 16, 16)
SHAPE = (4, 4, 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.mix, self.head = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.mix(self.down(x).relu()).mean((2, 3)))


def _transformed(**options: Any) -> Callable[[], nn.Module]:
    return lambda: randomise(aimgraph.transform(Net(), X, shape=SHAPE, **options))


FORMS: dict[str, Callable[[], nn.Module]] = {
    f"{lowering}, {memory}": _transformed(lowering=lowering, **options)
    for lowering in ("split", "concat")
    for memory, options in {
        "static": {},
        "written": {"updates": "stages"},
        "state": {"updates": "stages", "carry": "state"},
    }.items()
}
FOLDED: dict[str, Callable[[], nn.Module]] = {
    "folded": lambda: aimgraph.fold(_transformed()()),
    "folded, fused": lambda: aimgraph.fold(_transformed()(), fuse_batchnorm=True),
}


def compiled(module: nn.Module, backend: str = "aot_eager") -> tuple[Any, Any]:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    return torch.compile(module, fullgraph=True, dynamic=True, backend=counter), counter


@pytest.mark.parametrize("form", mostly_slow([*FORMS, *FOLDED], kept=["split, state", "concat, static", "folded"]))
def test_one_graph_for_every_batch_in_eval_mode(form: str) -> None:
    module = (FORMS | FOLDED)[form]().eval()
    run, counter = compiled(module)
    torch.testing.assert_close(run(X), module(X))
    made = counter.frame_count
    assert made
    torch.testing.assert_close(run(OTHER), module(OTHER))
    assert counter.frame_count == made


@pytest.mark.slow
@pytest.mark.parametrize("form", list(FORMS))
def test_one_graph_for_every_batch_in_train_mode(form: str) -> None:
    module = FORMS[form]().train()
    run, counter = compiled(module)
    made = []
    for x in (X, OTHER):
        run(x).square().sum().backward()
        made.append(counter.frame_count)
    missing = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert 0 < made[0] == made[1]
    assert missing == []


def _with_sets(count: int, **options: Any) -> aimgraph.AimModule:
    aim = randomise(aimgraph.transform(Net(), X, shape=SHAPE, **options)).eval()
    for index in range(count):
        aim.add_memory_set(f"s{index}", share_reads=not options)
        with torch.no_grad():
            for parameter in aimgraph.memory_parameters(aim, f"s{index}"):
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    return aim


@pytest.mark.parametrize("options", [{}, {"updates": "stages", "carry": "state"}], ids=["values alone", "whole sets"])
def test_twelve_memory_sets_are_one_graph(options: dict[str, Any]) -> None:
    aim = _with_sets(12, **options)
    run, counter = compiled(aim, "eager")
    wanted, made = [], set()
    for name in aim.memory_sets[1:]:
        with aim.using(name):
            wanted.append(aim(X))
            torch.testing.assert_close(run(X), wanted[-1])
        made.add(counter.frame_count)
    assert len(made) == 1
    assert all(not torch.allclose(one, wanted[0]) for one in wanted[1:])
    torch.testing.assert_close(run(X), aim(X))  # the default one


def test_a_set_for_every_sample_is_one_graph_for_each_power_of_two() -> None:
    aim = _with_sets(12)
    names = aim.memory_sets
    (run, counter), made = compiled(aim), []
    for step, distinct in enumerate((4, 3, 3, 4, 2, 2, 1, 1)):
        chosen = [names[1 + (step + row % distinct) % 12] for row in range(4)]
        with aim.using(chosen):
            given = run(X)
            torch.testing.assert_close(given, aim(X))
        for row, name in enumerate(chosen):
            with aim.using(name):
                torch.testing.assert_close(given[row], aim(X)[row], rtol=1e-4, atol=1e-5)
        made.append(counter.frame_count)
    assert made[0] == made[3] < made[4] == made[5] < made[6] == made[7]


def test_only_the_sets_of_a_batch_get_gradients_where_they_are_compiled() -> None:
    aim = _with_sets(3)
    run, _ = compiled(aim)
    with aim.using(["s0", "s2", "s0", "s2"]):
        run(X).square().sum().backward()
        given = {name: aim.get_parameter(f"aim.sets.{name}.memory.source.value").grad for name in ("s0", "s1", "s2")}
        aim.zero_grad()
        aim(X).square().sum().backward()
    assert given["s1"] is None
    for name in ("s0", "s2"):
        grad = given[name]
        assert grad is not None
        torch.testing.assert_close(grad, aim.get_parameter(f"aim.sets.{name}.memory.source.value").grad)


class Scanning(nn.Module):
    """Layers with channels in other dimensions, and a loop over the third one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv1d(4, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return torch.stack([h[:, i] for i in range(x.shape[1])], 1)


def test_lengths_that_come_and_go() -> None:
    aim = randomise(aimgraph.transform(Scanning(), torch.randn(4, 6, 4))).eval()
    torch._dynamo.reset()
    compiled = torch.compile(aim, backend="eager")
    with torch.no_grad():
        for shape in ((4, 6, 4), (2, 6, 4), (2, 3, 4), (4, 6, 4), (4, 8, 4)):
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), aim(x))


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, *more: Tensor, **options: Any) -> Tensor:
        h = self.first(x)
        h = h if mask is None else h * mask
        for one in more:
            h = h + one
        return self.last(h if options.get("shift") is None else h + options["shift"])


ROW, MASK = torch.linspace(-1, 1, 16).reshape(4, 4), torch.linspace(0, 1, 32).reshape(4, 8)
EXAMPLES: dict[str, Any] = {
    "by keyword": {"x": ROW, "mask": MASK},
    "by position": (ROW, MASK),
    "one more": (ROW, MASK, MASK),
    "open": {"x": ROW, "shift": MASK},
}
CALLED: dict[str, tuple[tuple[Tensor, ...], dict[str, Any]]] = {
    "left out": ((ROW,), {}),
    "left out by keyword": ((), {"x": ROW}),
    "position": ((ROW, MASK), {}),
    "keyword": ((ROW,), {"mask": MASK}),
    "none": ((ROW,), {"mask": None}),
    "one more": ((ROW, MASK, MASK), {}),
    "open": ((ROW,), {"shift": MASK}),
    "unknown": ((ROW, MASK), {"other": 3}),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_arguments_that_are_passed_in_another_way_or_left_out(example: str) -> None:
    base = Optional().eval()
    aim = aimgraph.transform(base, EXAMPLES[example]).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the base's own forward runs
        for name, (args, kwargs) in CALLED.items():
            torch._dynamo.reset()
            assert torch.equal(torch.compile(aim, backend="eager")(*args, **kwargs), base(*args, **kwargs)), name
