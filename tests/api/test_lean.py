"""A frozen base whose forward keeps only what the gradients still wanted need."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import aimgraph
from aimgraph.bench.footprint import saved_bytes
from aimgraph.emit.module import AimModule
from aimgraph.errors import PlanError
from aimgraph.runtime.lean.step import Lean


class Net(nn.Module):
    """Convolutions, norms, pools, a branch and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(2)
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.stem(x))
        return self.head((y + self.deep(y)).mean((2, 3)))


def made(**options: Any) -> tuple[AimModule, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    net = Net()
    net(x)  # statistics of its own
    aim: AimModule = aimgraph.transform(net, x, start="drawn", **options)
    return aim.train(), x


def gradients(aim: nn.Module, x: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """Of everything that has one, and the output."""
    aim.zero_grad()
    output = (aim if call is None else call)(x)
    output.float().square().sum().backward()
    return {"output": output.detach()} | {
        name: one.grad.clone() for name, one in aim.named_parameters() if one.grad is not None
    }


def equal(these: dict[str, Tensor], those: dict[str, Tensor]) -> None:
    assert these.keys() == those.keys()
    assert [name for name in these if not torch.equal(these[name], those[name])] == []


def both(aim: AimModule) -> Iterator[tuple[bool, AimModule]]:
    for lean in (False, True):
        yield lean, aimgraph.freeze_base(copy.deepcopy(aim), lean=lean)


def is_lean(aim: nn.Module, x: Tensor) -> bool:
    """Whether some step of a forward is lean."""
    todo, seen = [aim(x).sum().grad_fn], set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [one for one, _ in node.next_functions]
    return any(node.name() == f"{Lean.__name__}Backward" for node in seen)


@pytest.mark.parametrize("options", [{}, {"updates": "stages"}, {"updates": "stages", "carry": "state"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_and_gradients_are_equal_to_the_bit_and_the_code_shows_it(options: Any, dtype: torch.dtype) -> None:
    aim, x = made(**options)
    aim, x = aim.to(dtype), x.to(dtype)
    found = {lean: gradients(one, x) for lean, one in both(aim)}
    equal(found[True], found[False])
    (_, plain), (_, lean) = both(aim)
    assert "lean_call" in lean.code
    assert "lean_call" not in plain.code
    assert "lean_call" not in str(lean.graph)
    kept = [saved_bytes(one, lambda one=one: one(x)) for one in (plain, lean)]
    assert kept[1] < kept[0] * (0.9 if options else 0.25)  # updates are trained, and keep their features


def test_gradients_of_the_inputs_and_of_a_memory_off() -> None:
    aim, x = made()
    found = []
    for _, one in both(aim):
        inputs = x.clone().requires_grad_()
        one(inputs).square().sum().backward()
        found.append(inputs.grad)
        with aimgraph.disable_memory(one):
            inputs = x.clone().requires_grad_()
            one(inputs).square().sum().backward()
            found.append(inputs.grad)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_nothing_before_the_first_trainable_place_is_kept() -> None:
    aim, x = made(sites=("head",))
    (_, plain), (_, lean) = both(aim)
    assert saved_bytes(lean, lambda: lean(x)) <= saved_bytes(plain, lambda: plain(x)) < 1000


@pytest.mark.parametrize("path", ["head", "deep.0", "deep.1", "stem.0", "stem.1", "stem"])
@pytest.mark.parametrize("when", ["at once", "after a step"])
def test_what_is_thawed_gets_its_gradients(path: str, when: str) -> None:
    aim, x = made()
    found = []
    for _, one in both(aim):
        if when == "after a step":
            gradients(one, x)
        one.get_submodule(path).requires_grad_(True)
        found.append(gradients(one, x))
    equal(*found)
    assert any(name.startswith(path) for name in found[0])


def test_a_head_that_an_optimiser_trains_beside_the_memory_moves_as_without_it() -> None:
    aim, x = made()
    states = []
    for _, one in both(aim):
        one.head.requires_grad_(True)
        optimizer = torch.optim.AdamW(
            [{"params": list(aimgraph.memory_parameters(one))}, {"params": one.head.parameters(), "lr": 1e-2}]
        )
        for _ in range(3):
            gradients(one, x)
            optimizer.step()
        states.append(one.state_dict())
    equal(*states)


def test_freeze_base_with_false_gives_all_gradients_again_and_lean_is_gone() -> None:
    aim, x = made()
    expected = gradients(copy.deepcopy(aim), x)
    lean = aimgraph.freeze_base(copy.deepcopy(aim))
    assert is_lean(lean, x)
    thawed = aimgraph.freeze_base(lean, False)
    assert not is_lean(thawed, x)
    equal(gradients(thawed, x), expected)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("autocast", [False, True])
def test_channels_last_and_autocast(memory_format: torch.memory_format, autocast: bool) -> None:
    aim, x = made()
    aim, x = aim.to(memory_format=memory_format), x.to(memory_format=memory_format)

    def call(one: nn.Module) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return one(x)

        return run

    found = [gradients(one, x, call(one)) for _, one in both(aim)]
    if not autocast:
        equal(*found)
    assert found[0].keys() == found[1].keys()
    for name, other in found[0].items():
        torch.testing.assert_close(found[1][name], other, rtol=1e-2, atol=1e-2 * float(other.abs().max()))


def test_copies_pickles_and_memory_sets_are_lean(tmp_path: Any) -> None:
    aim, x = made()
    (_, plain), (_, lean) = both(aim)
    expected = gradients(plain, x)
    for one in (copy.deepcopy(lean), copy.copy(lean), pickle.loads(pickle.dumps(lean))):
        assert is_lean(one, x)
        equal(gradients(one, x), expected)
    for one in (plain, lean):
        torch.manual_seed(3)
        one.add_memory_set("other", like="default")
        one.use("other")
    assert is_lean(lean, x)
    equal(gradients(lean, x), gradients(plain, x))
    for one, expected_lean in ((lean, True), (plain, False)):
        one.use("default")
        assert is_lean(aimgraph.refit(one), x) is expected_lean
    aimgraph.save(lean, tmp_path / "memory")
    assert is_lean(aimgraph.load(tmp_path / "memory", aimgraph.strip(copy.deepcopy(plain))).train(), x)


def test_a_graph_that_somebody_changes_is_made_lean_as_it_is_then() -> None:
    aim, x = made()
    lean = aimgraph.freeze_base(aim)
    before = lean(x)
    graph = lean.graph
    output = graph.output_node()
    with graph.inserting_before(output):
        doubled = graph.call_function(torch.mul, (output.args[0], 2))
    output.args = (doubled,)
    lean.recompile()
    assert torch.equal(lean(x), 2 * before)
    assert is_lean(lean, x)


def test_retained_graphs_checkpointing_and_hooks() -> None:
    aim, x = made()
    found = []
    for _, one in both(aim):
        one.zero_grad()
        loss = one(x).square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        found.append({name: p.grad for name, p in one.named_parameters() if p.grad is not None})
        for reentrant in (False, True):
            inputs = x.clone().requires_grad_()
            found.append(gradients(one, inputs, lambda x, one=one, r=reentrant: checkpoint(one, x, use_reentrant=r)))
        seen: list[float] = []
        one.stem[0].register_forward_hook(lambda module, given, output, seen=seen: seen.append(float(output.sum())))
        found.append(gradients(one, x))
        assert len(seen) == 1
    for without, lean in zip(found[:4], found[4:], strict=True):
        equal(lean, without)


class Functional(nn.Module):
    """The same kinds of layers, called as functions and methods, with smooth activations and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.gate = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(F.max_pool2d(F.relu(self.first(x)), 2).clamp(max=3))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[..., None, None]
        return self.head(F.gelu(self.second(y)).relu().mean((2, 3)))


def functional() -> tuple[AimModule, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    aim: AimModule = aimgraph.transform(Functional(), x, start="drawn")
    return aim.train(), x


@pytest.mark.parametrize("make", [made, functional])
def test_a_second_derivative_is_refused_with_the_remedy(make: Any) -> None:
    aim, x = make()
    (_, plain), (_, lean) = both(aim)
    for one in (plain, lean):
        inputs = x.clone().requires_grad_()

        def penalty(one: nn.Module = one, inputs: Tensor = inputs) -> None:
            (grad,) = torch.autograd.grad(one(inputs).square().sum(), inputs, create_graph=True)
            grad.square().sum().backward()

        if one is plain:
            penalty()
        else:
            with pytest.raises(PlanError, match="lean=False"):
                penalty()


def test_a_gradient_that_changes_with_the_features_alone_is_refused_too() -> None:
    aim, x = functional()
    lean = aimgraph.freeze_base(aim)
    inputs = x.clone().requires_grad_()
    with pytest.raises(PlanError, match="lean=False"):  # of a constant gradient
        torch.autograd.grad(lean(inputs).sum(), inputs, create_graph=True)


@pytest.mark.parametrize("make", [made, functional])
def test_transforms_of_torch_func_and_forward_mode_stand_aside(make: Any) -> None:
    aim, x = make()
    (_, plain), (_, lean) = both(aim)
    found = []
    for one in (plain, lean):
        one.eval()
        parameters = dict(one.named_parameters())

        def loss(parameters: Any, one: nn.Module = one) -> Tensor:
            return torch.func.functional_call(one, parameters, (x,)).square().sum()

        grads = torch.func.grad(loss)(parameters)
        _, tangent = torch.func.jvp(one, (x,), (torch.ones_like(x),))
        with torch.autograd.forward_ad.dual_level():
            dual = one(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
            also = torch.autograd.forward_ad.unpack_dual(dual).tangent
        rows = torch.func.vmap(lambda row, one=one: one(row[None])[0])(x)
        found.append({**grads, "tangent": tangent, "also": also.detach(), "rows": rows})
    equal(*found)


@pytest.mark.parametrize("make", [made, functional])
def test_a_batched_backward_pass(make: Any) -> None:
    aim, x = make()
    found = []
    for _, one in both(aim):
        inputs = x.clone().requires_grad_()
        rows = torch.eye(5)[:, None].expand(5, 4, 5).contiguous()
        found.append(torch.autograd.grad(one(inputs), inputs, rows, is_grads_batched=True)[0])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("make", [made, functional])
@pytest.mark.filterwarnings("ignore")
def test_compiled_and_captured_forwards_give_the_same(make: Any) -> None:
    aim, x = make()
    (_, plain), (_, lean) = both(aim)
    expected = gradients(plain, x)
    found = gradients(lean, x, torch.compile(lean, backend="aot_eager", fullgraph=True))
    assert found.keys() == expected.keys()
    for name, other in expected.items():
        torch.testing.assert_close(found[name], other, rtol=1e-4, atol=1e-4)
    traced = torch.jit.trace(lean, x)
    torch.testing.assert_close(traced(x), plain(x))
    exported = torch.export.export(lean, (x,), strict=True)
    torch.testing.assert_close(exported.module()(x), plain(x))


def test_a_module_that_is_compiled_by_itself() -> None:
    aim, x = made()
    (_, plain), (_, lean) = both(aim)
    lean.deep[2].compile(backend="aot_eager")
    equal(gradients(lean, x), gradients(plain, x))


def test_calls_that_no_form_is_for() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.wave = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, dtype=torch.complex64)
            self.scale = nn.Parameter(torch.ones(4, 1, 1))
            self.register_buffer("table", torch.ones(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            scale = torch.empty_like(self.table)
            torch.mul(self.table, 2.0, out=scale)
            torch.clamp(self.table, min=0.0, out=scale)
            return self.wave((self.conv(x) * scale).to(torch.complex64)).abs()

    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    aim = aimgraph.transform(Odd(), x, start="drawn")
    equal(*[gradients(one.train(), x) for _, one in both(aim)])


def test_outputs_can_be_saved_and_hold_nothing(tmp_path: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    for last in (nn.SiLU(), nn.GELU()):
        lean = aimgraph.freeze_base(aimgraph.transform(nn.Sequential(nn.Conv2d(3, 4, 3), last), x, start="drawn"))
        output = lean(x)
        assert not vars(output)
        torch.save(output, tmp_path / "output.pt")
        assert torch.equal(torch.load(tmp_path / "output.pt"), output)


def test_larger_models_with_a_transformed_part_are_lean_inside_of_it() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(Net(), nn.Linear(5, 3)), torch.randn(2, 3, 16, 16)
    found = []
    whole = aimgraph.transform(net, x, within="0", start="drawn")
    for lean in (False, True):
        one = aimgraph.freeze_base(copy.deepcopy(whole), lean=lean).train()
        assert is_lean(one, x) is lean
        found.append(gradients(one, x))
    equal(*found)
