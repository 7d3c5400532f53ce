"""The emitted module: copies, pickles, modes, attributes, state dicts."""

import copy
import gc
import io
import multiprocessing
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.models_zoo import mlp
from tests.nets import NETS, Residual, TwoInputs, build, randomise, run, updates_for


def make(name: str, **options: object) -> tuple[nn.Module, aimgraph.AimModule, Tensor]:
    base, x = build(name)
    aim = randomise(aimgraph.transform(base, x, **options))
    assert isinstance(aim, aimgraph.AimModule)
    return base, aim, x


def state(name: str) -> dict[str, object]:
    base, x = build(name)
    return updates_for(base, x) | {"carry": "state", "shape": (2, 2, 3)}


@pytest.mark.parametrize("lowering", ["split", "concat"])
@pytest.mark.parametrize("name", ["residual", "functional_dropout", "shared", "channels_last", "output_size"])
def test_copies_are_bit_identical(name: str, lowering: str) -> None:
    _, aim, x = make(name, lowering=lowering, **state(name))
    copies = [copy.deepcopy(aim), pickle.loads(pickle.dumps(aim)), copy.deepcopy(copy.deepcopy(aim))]
    for mode in (True, False, True):
        reference = copy.deepcopy(aim).train(mode)
        expected = run(reference, x)
        for other in copies:
            twin = copy.deepcopy(other).train(mode)
            assert torch.equal(run(twin, x), expected)
            assert [n for n, _ in twin.named_parameters()] == [n for n, _ in aim.named_parameters()]
            assert [str(n) for n in twin.graph.nodes] == [str(n) for n in reference.graph.nodes]
            assert aimgraph.plan(twin).to_dict() == aimgraph.plan(aim).to_dict()
            buffers = dict(twin.named_buffers())
            assert all(torch.equal(value, buffers[key]) for key, value in reference.named_buffers())
        assert not any(p is q for p, q in zip(aim.parameters(), copies[0].parameters(), strict=True))


def _negated(graph: torch.fx.Graph) -> None:
    (out,) = graph.find_nodes(op="output")
    with graph.inserting_before(out):
        out.args = (graph.call_function(torch.neg, out.args),)


@pytest.mark.parametrize("of_the_copy", [True, False])
def test_a_graph_that_is_changed_is_not_that_of_a_copy(of_the_copy: bool) -> None:
    _, aim, x = make("functional_dropout")

    def given(module: nn.Module, mode: bool) -> Tensor:
        return run(copy.deepcopy(module).train(mode), x)  # a forward in train mode moves the statistics

    expected = {mode: given(aim, mode) for mode in (True, False)}
    other = copy.deepcopy(aim.train())
    changed, kept = (other, aim) if of_the_copy else (aim, other)
    _negated(changed.graph)
    changed.graph.lint()
    changed.recompile()
    for mode in (True, False, True):
        assert torch.equal(given(kept, mode), expected[mode])
        assert torch.equal(given(changed, mode), -expected[mode] if mode else expected[mode])
        assert ("neg" in changed.train(mode).code) == mode
        assert "neg" not in kept.train(mode).code
    again = pickle.loads(pickle.dumps(copy.deepcopy(changed.train())))
    assert torch.equal(given(again, True), -expected[True])
    assert torch.equal(given(again, False), expected[False])
    changed.graph = copy.deepcopy(kept.eval().graph)
    assert torch.equal(given(changed, False), expected[False])


@pytest.mark.parametrize("asked_again", [True, False])
def test_a_graph_stays_the_one_that_was_given_out(asked_again: bool) -> None:
    base, aim, x = make("residual")
    aim.eval()
    expected, graph = run(aim, x), aim.graph
    other = copy.deepcopy(aim)
    aimgraph.verify(base, aim)
    assert not asked_again or aim.graph is graph
    _negated(graph)
    unfinished = copy.deepcopy(aim)  # what was not compiled yet is compiled in a copy
    assert torch.equal(run(unfinished, x), -expected)
    assert torch.equal(run(aim, x), expected)
    aim.recompile()
    assert torch.equal(run(aim, x), -expected)
    assert aim.graph is graph
    other.recompile()
    for kept in (other, copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert torch.equal(run(kept, x), expected)
    other.graph = given = copy.deepcopy(graph)
    assert other.graph is given
    assert torch.equal(run(other, x), -expected)


def test_what_is_no_graph_changes_nothing() -> None:
    _, aim, x = make("functional_dropout")
    expected = run(aim.eval(), x)
    with pytest.raises(AssertionError):
        aim.graph = 5
    assert torch.equal(run(aim.train().eval(), x), expected)


def test_a_forward_belongs_to_its_graph_whatever_the_flag_says() -> None:
    _, aim, x = make("functional_dropout")
    expected = run(aim.eval(), x)
    aim.train()
    aim.training = False
    aim.recompile()
    assert torch.equal(run(aim.train().eval(), x), expected)


@pytest.mark.slow
def test_many_copies_compile() -> None:
    _, aim, x = make("residual")
    expected = aim.eval()(x)
    for other in [aim, *(copy.deepcopy(aim) for _ in range(9))]:
        assert torch.equal(torch.compile(other, backend="eager", fullgraph=True)(x), expected)


def test_a_copy_does_not_keep_what_it_was_copied_from() -> None:
    _, aim, x = make("functional_dropout")
    run(aim, x)
    weight = weakref.ref(next(aim.parameters()))
    other = copy.deepcopy(aim)
    run(other.eval().train(), x)
    del aim
    gc.collect()
    assert weight() is None


def test_a_shallow_copy_shares_its_tensors() -> None:
    _, aim, x = make("residual")
    other = copy.copy(aim)
    assert all(p is q for p, q in zip(aim.parameters(), other.parameters(), strict=True))
    assert torch.equal(run(other, x), run(aim, x))


def test_in_place_operators_stay_in_place_through_pickling() -> None:
    _, aim, _ = make("residual")
    other = pickle.loads(pickle.dumps(aim))
    assert [str(n.target) for n in other.graph.nodes] == [str(n.target) for n in aim.graph.nodes]
    assert "iadd" in aim.code


def _child(payload: bytes, results: Any) -> None:
    torch.set_num_threads(1)
    aim, x = pickle.loads(payload)
    outputs = []
    for mode in (True, False):
        outputs.append(run(aim.train(mode), x).detach())
    buffer = io.BytesIO()
    torch.save((outputs, dict(aim.named_buffers()), pickle.dumps(aim)), buffer)
    results.put(buffer.getvalue())


def test_a_spawned_process_computes_the_same_and_sends_it_back() -> None:
    _, aim, x = make("functional_dropout", **state("functional_dropout"))
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=_child, args=(pickle.dumps((aim, x)), results))
    process.start()
    outputs, buffers, back = torch.load(io.BytesIO(results.get(timeout=120)), weights_only=True)
    process.join(60)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for mode, output in zip((True, False), outputs, strict=True):
            assert torch.equal(run(aim.train(mode), x), output)
        assert all(torch.equal(value, buffers[key]) for key, value in aim.named_buffers())
        returned = pickle.loads(back)
        assert torch.equal(run(returned, x), run(aim, x))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("name", ["functional_dropout", "residual"])
def test_modes_switch_as_in_the_base(name: str, start: bool) -> None:
    base, x = build(name)
    base.train(start)
    aim = aimgraph.transform(base, x)
    assert aim.training == start
    assert all(module.training == aim.get_submodule(path).training for path, module in base.named_modules() if path)
    for mode in (start, False, True, False, True, True):
        base.train(mode), aim.train(mode)
        for seed in (0, 1):
            assert torch.equal(run(base, x, seed=seed), run(aim, x, seed=seed))
    assert not torch.equal(run(base, x, seed=0), run(base, x, seed=1))  # there is something to switch


def test_a_submodule_in_another_mode_is_kept() -> None:
    base, x = build("residual")
    base.train()
    base.stem.eval()
    aim = aimgraph.transform(base, x)
    before = aim.get_buffer("stem.1.running_mean").clone()
    run(aim, x)
    assert torch.equal(aim.get_buffer("stem.1.running_mean"), before)
    assert not torch.equal(aim.get_buffer("block.1.running_mean"), torch.zeros(8))


def test_freeze_base_survives_train() -> None:
    for name in ("residual", "functional_dropout"):
        base, x = build(name)
        aim = aimgraph.transform(base, x, **state(name))
        aimgraph.freeze_base(aim).train()
        before = copy.deepcopy({k: v for k, v in aim.state_dict().items() if not k.startswith("aim.")})
        assert aim.training
        assert aim.get_submodule("aim.memory.updates").training
        assert not any(module.training for path, module in aim.named_children() if path != "aim")
        optimiser = torch.optim.SGD((p for p in aim.parameters() if p.requires_grad), lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            aim.train()(x).square().sum().backward()
            optimiser.step()
        assert all(torch.equal(value, aim.state_dict()[key]) for key, value in before.items())
        memory = dict(aim.named_parameters())
        assert all(p.requires_grad == key.startswith("aim.") for key, p in memory.items())
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in aimgraph.memory_parameters(aim))
        reset = aimgraph.transform(base, x, **state(name))
        aimgraph.freeze_base(reset).train()
        with aimgraph.disable_memory(reset):
            assert torch.equal(reset(x), base.eval()(x))  # dropout and batch norm stand still
        aimgraph.freeze_base(aim, False)
        assert aim.get_submodule("head").training
        assert all(p.requires_grad for p in aim.parameters())


@pytest.mark.parametrize("lowering", ["split", "concat"])
@pytest.mark.parametrize("name", [*NETS])
def test_base_checkpoints_load(name: str, lowering: str) -> None:
    base, x = build(name)
    aim = aimgraph.transform(base, x, lowering=lowering)
    other, _ = build(name, seed=7)
    result = aim.load_state_dict(other.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert result.missing_keys
    assert all(key.startswith("aim.") for key in result.missing_keys)
    state_dict = aim.state_dict()
    assert list(state_dict)[: len(other.state_dict())] == list(other.state_dict()) or lowering == "concat"
    assert all(torch.equal(value, state_dict[key]) for key, value in other.state_dict().items())
    assert torch.equal(run(other.eval(), x), run(aim.eval(), x)) or lowering == "concat"
    assert torch.allclose(run(other.eval(), x), run(aim.eval(), x), atol=1e-5)


@pytest.mark.parametrize("first", ["split", "concat"])
def test_state_dicts_load_across_forms(first: str) -> None:
    second = {"split": "concat", "concat": "split"}[first]
    base, x = build("grouped", torch.float64)
    one = aimgraph.transform(base, x, lowering=first, start="drawn", seed=3, shape=(3, 3, 6))
    other = aimgraph.transform(base, x, lowering=second, shape=(3, 3, 6))
    assert set(one.state_dict()) == set(other.state_dict())
    other.load_state_dict(one.state_dict())
    assert torch.allclose(one(x), other(x), atol=1e-12)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
    assert all(value.is_contiguous() for value in one.state_dict().values())


def test_a_widened_weight_of_the_wrong_shape_is_refused() -> None:
    base, x = build("grouped")
    aim = aimgraph.transform(base, x, lowering="concat")
    before = copy.deepcopy(aim.state_dict())
    bad = dict(before) | {"0.weight": torch.zeros(6, 3, 3, 3), "aim.memory.reads.2.weight": torch.zeros(1, 1)}
    with pytest.raises(
        RuntimeError,
        match=r"size mismatch for 0\.weight: the checkpoint has \[6, 3, 3, 3\], this model needs \[6, 2, 3, 3\]",
    ):
        aim.load_state_dict(bad)
    assert all(torch.equal(value, aim.state_dict()[key]) for key, value in before.items())


def test_plain_attributes_are_forwarded_and_lost_methods_listed() -> None:
    class Net(nn.Module):
        family = "small"

        def __init__(self) -> None:
            super().__init__()
            self.classes = ["a", "b"]
            self.head = nn.Linear(3, 2)
            self.layers = [self.head]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

        def features(self, x: Tensor) -> Tensor:
            return x

    aim = aimgraph.transform(Net(), torch.zeros(2, 3))
    assert (aim.classes, aim.family) == (["a", "b"], "small")
    assert aim.layers[0] is aim.head
    assert any("methods of Net that are lost: features" in note for note in aimgraph.plan(aim).notes)
    with pytest.raises(AttributeError, match="features"):
        _ = aim.features
    bare = aimgraph.strip(aim)
    assert bare.layers[0] is bare.head
    assert bare.features(1) == 1


def test_keyword_inputs_dict_outputs_and_defaults() -> None:
    base = TwoInputs()
    image, vector = torch.randn(2, 3, 6, 6), torch.randn(2, 5)
    for inputs in (((image,), {"vector": vector}), {"image": image, "vector": vector}):
        aim = aimgraph.transform(base, inputs, verify="full")
        expected, seen = base(image, vector=vector), aim(image, vector=vector)
        assert list(expected) == list(seen)
        assert all(torch.equal(expected[key], seen[key]) for key in expected)
        assert torch.equal(aim(image, vector=vector, scale=2.0)["logits"], expected["logits"])
        expected = base(image, vector=vector, scale=3.0)
        with pytest.warns(UserWarning, match=r"'scale' was 2\.0 in the example inputs"):  # a constant of the graph
            assert torch.equal(aim(image, vector=vector, scale=3.0)["logits"], expected["logits"])


def test_unused_modules_buffers_and_aliases_are_kept() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)
            self.alias = self.head
            self.unused = nn.Conv2d(1, 1, 1)
            self.register_buffer("kept", torch.ones(2))
            self.register_buffer("hidden", torch.ones(1), persistent=False)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.alias(x) * self.scale

    base = Net()
    aim = aimgraph.transform(base, torch.zeros(2, 3), shape=(2,))
    assert aim.alias is aim.head
    assert [k for k in aim.state_dict() if not k.startswith("aim.")] == list(base.state_dict())
    assert [n for n, _ in aim.named_buffers()][:2] == ["kept", "hidden"]
    assert {s.path: s.reason for s in aimgraph.plan(aim).skipped} == {"unused": "never called in the forward pass"}
    bare = aimgraph.strip(aim)
    assert bare.alias is bare.head
    assert list(bare.state_dict()) == list(base.state_dict())


def test_forward_hooks_of_the_base_go_on_working() -> None:
    base, x = build("residual")
    seen = []
    base.register_forward_hook(lambda *_: seen.append("root"))
    base.get_submodule("down").register_forward_hook(lambda *_: seen.append("down"))
    aim = aimgraph.transform(base, x)
    seen.clear()
    run(aim, x)
    assert seen == ["down", "root"]


def test_to_and_half_precision() -> None:
    _, aim, x = make("residual", **state("residual"))
    for dtype in (torch.float64, torch.bfloat16):
        moved = copy.deepcopy(aim).to(dtype).eval()
        assert {p.dtype for p in moved.parameters()} == {dtype}
        assert moved(x.to(dtype)).dtype == dtype


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        base, x = Residual(), torch.empty(2, 3, 8, 8)
    aim = aimgraph.transform(base, x, **state("residual"))
    assert {p.device.type for p in aim.parameters()} == {"meta"}
    assert aim(x).shape == (2, 4)


def test_inplace_shares_the_parameters() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, inplace=True)
    seen = dict(aim.named_parameters())
    assert all(parameter is seen[name] for name, parameter in base.named_parameters())
    run(aim.train(), x)
    assert torch.equal(base.get_buffer("stem.1.running_mean"), aim.get_buffer("stem.1.running_mean"))
    apart = aimgraph.transform(base, x)
    assert not any(p is q for p in base.parameters() for q in apart.parameters())


def test_training_reaches_the_memory() -> None:
    torch.manual_seed(0)
    base = mlp(6, (8,), 3)
    aim = aimgraph.freeze_base(aimgraph.transform(base, torch.zeros(1, 6), shape=(4,))).train()
    x, y = torch.randn(32, 6), torch.randint(3, (32,))
    optimiser = torch.optim.Adam(aimgraph.memory_parameters(aim), lr=0.05)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(aim(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert aim.get_parameter("aim.memory.source.value").grad.abs().sum() > 0


def test_compile_fullgraph() -> None:
    _, aim, x = make("conv2d", updates=("0",), shape=(2, 2, 3))
    expected = aim.eval()(x)
    compiled = torch.compile(aim, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x), expected, atol=1e-6)


def test_layers_of_different_dtypes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2).bfloat16()

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).bfloat16())

    base, x = Net(), torch.randn(3, 4)
    aim = aimgraph.transform(base, x, shape=(3,), updates=("first",), carry="state")
    assert torch.equal(aim.eval()(x), base.eval()(x))
    assert randomise(aim)(x).dtype == torch.bfloat16


def test_a_callable_choice_of_sites_does_not_stop_pickling() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, sites=lambda path, module: path in ("down", "stem.0"))
    assert aimgraph.plan(pickle.loads(pickle.dumps(aim))).memories[0].config.sites == ("stem.0", "down")


@pytest.mark.parametrize("name", ["functional_dropout", "residual", "grouped"])
def test_the_signature_is_the_bases(name: str) -> None:
    import inspect

    base, x = build(name)
    aim = aimgraph.transform(base, x, lowering="concat")
    parameters = list(inspect.signature(base.forward).parameters)
    assert list(inspect.signature(aim.forward).parameters) == parameters
    with aimgraph.disable_memory(aim):
        assert list(inspect.signature(aim.forward).parameters) == parameters
