"""A layer kind that aimgraph does not know, registered by one file: ``examples/layer_kind.py``."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.runtime.bias_map import BiasMap
from aimgraph.runtime.layer_kinds import is_layer, kind_of
from aimgraph.runtime.layers import concat_weight, read_weight_shape, split_weight, weight_shape
from tests.nets import apart, gradients, randomise

_SPEC = importlib.util.spec_from_file_location("layer_kind", Path(__file__).parents[3] / "examples" / "layer_kind.py")
assert _SPEC is not None
assert _SPEC.loader is not None
example = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(example)

X = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """The feed-forward half of a block of GPT-2, and a head, on [B, T, 6] or [B, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), example.Conv1D(8, 6), example.Conv1D(6, 8)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.drop(self.down(F.gelu(self.up(self.norm(x))))))


class Deciding(Block):
    """One that can't be traced: it looks at a value."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) > -1e9 else -x)


def made(x: Tensor = X, base: nn.Module | None = None, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    base = (Block() if base is None else base).double()
    return base, aimgraph.transform(base, x, **options)


def by_hand(base: Any, aim: Any, x: Tensor) -> Tensor:
    """x W + b + m Wm at each layer, for a memory of as many values as positions: one channel."""
    reads, memory = aim.aim.memory.reads, aim.aim.memory.source().reshape(1, -1, 1)
    hidden = F.gelu(base.up(base.norm(x)) + memory @ reads.up.weight)
    return base.head(x + base.down(hidden) + memory @ reads.down.weight) + memory @ reads.head.weight.T


def test_its_layers_are_sites() -> None:
    base, aim = made()
    plan = aimgraph.plan(aim)
    sites = {site.path: site for site in plan.sites}
    assert list(sites) == ["up", "down", "head"]
    assert (sites["up"].kind, sites["up"].channels, sites["up"].taps) == ("Conv1D", (6, 8), 8)
    assert plan.skipped == ()
    assert set(plan.called) == set(sites)
    assert aimgraph.verify(base, aim, X).ok


@pytest.mark.parametrize("lowering", ["split", "concat"])
@pytest.mark.parametrize("train", [True, False])
def test_identity_at_the_start(lowering: str, train: bool) -> None:
    base, aim = made(lowering=lowering)
    outputs = []
    for module in (base.train(train), aim.train(train)):
        torch.manual_seed(3)
        outputs.append(module(X))
        outputs[-1].sum().backward()
    assert torch.equal(*outputs)
    if lowering == "split":
        assert all(torch.equal(p.grad, aim.get_parameter(name).grad) for name, p in base.named_parameters())
        assert aim.aim.memory.reads.up.weight.grad.any()


def test_reads_and_their_gradients_are_what_they_are_by_hand() -> None:
    base, aim = made(shape=(5,))
    base, aim = base.eval(), randomise(aim).eval()
    assert aim.aim.memory.reads.up.weight.shape == (1, 8)
    outputs, found = [aim(X), by_hand(base, aim, X)], []
    for output in outputs:
        aim.zero_grad()
        (output * torch.linspace(0, 1, output.numel()).reshape(output.shape)).sum().backward()
        found.append([parameter.grad.clone() for parameter in aim.aim.parameters()])
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*found)
    assert all(grad.any() for grad in found[0])


def test_split_is_concat() -> None:
    split, concat = (made(shape=(15,), lowering=lowering)[1].eval() for lowering in ("split", "concat"))
    concat.load_state_dict(randomise(split).state_dict())
    assert (concat.up.weight.shape, concat.up.nx) == ((9, 8), 9)
    torch.testing.assert_close(split(X), concat(X))
    torch.testing.assert_close(gradients(split, X), gradients(concat, X))
    assert all(torch.equal(value, split.state_dict()[name]) for name, value in concat.state_dict().items())


@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_strip_gives_the_base_back(lowering: str) -> None:
    base, aim = made(lowering=lowering)
    stripped = aimgraph.strip(randomise(aim))
    assert stripped.up.nx == 6
    assert all(torch.equal(value, stripped.state_dict()[name]) for name, value in base.state_dict().items())
    assert torch.equal(stripped.eval()(X), base.eval()(X))


def test_default_reads_are_drawn_as_its_layers_are() -> None:
    base = nn.Sequential(example.Conv1D(300, 200))
    aim = aimgraph.transform(base, torch.zeros(2, 200), shape=(4,), start="drawn")
    weight = aim.get_parameter("aim.memory.reads.0.weight")
    assert weight.shape == (4, 300)
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_folded_into_maps_or_into_biases() -> None:
    for x, maps in ((X, True), (X[:, 0], False)):
        aim = randomise(made(x)[1]).eval()
        folded = aimgraph.fold(aim)
        assert any(isinstance(module, BiasMap) for module in folded.modules()) is maps
        assert torch.equal(folded.up.bias, aim.up.bias) is maps
        assert apart(folded, aim, x) < 1e-12


def test_batch_normalisation_stays_behind_it() -> None:
    x = X[:, 0]
    base = nn.Sequential(example.Conv1D(8, 6), nn.BatchNorm1d(8)).double()
    base(x * 3 + 1)
    aim = randomise(made(x, base)[1]).eval()
    folded = aimgraph.fold(aim, fuse_batchnorm=True)
    assert "1" in {str(node.target) for node in folded.graph.nodes}
    assert apart(folded, aim, x) < 1e-12


@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_saved_and_loaded(lowering: str, tmp_path: Path) -> None:
    base, aim = made(lowering=lowering)
    aimgraph.save(randomise(aim).eval(), tmp_path / "aim")
    assert torch.equal(aimgraph.load(tmp_path / "aim", base).eval()(X), aim(X))


def test_sets_have_reads_of_their_own() -> None:
    _, aim = made(start="drawn")
    aim.eval().add_memory_set("other")
    before = aim(X)
    aim.use("other")
    own, other = aim.aim.memory.reads.up.weight, aim.get_parameter("aim.sets.other.memory.reads.up.weight")
    assert own.shape == other.shape
    assert not torch.equal(own, other)
    assert not torch.equal(aim(X), before)


def test_reads_inside_a_module_that_is_kept_as_one_call() -> None:
    base, aim = made(base=nn.Sequential(Deciding(), nn.Linear(3, 2)), shape=(5,))
    plan = aimgraph.plan(aim)
    assert {site.path: site.opaque for site in plan.sites} == {"0.up": "0", "0.down": "0", "0.head": "0", "1": ""}
    assert torch.equal(aim.eval()(X), base.eval()(X))
    _, traced = made(base=nn.Sequential(Block(), nn.Linear(3, 2)), shape=(5,))
    traced.load_state_dict(randomise(aim).state_dict())
    torch.testing.assert_close(aim(X), traced.eval()(X))


def test_the_algebra_of_its_weights() -> None:
    layer = example.Conv1D(8, 6)
    assert weight_shape(layer) == layer.weight.shape == (6, 8)
    reads = [torch.randn(read_weight_shape(layer, k)) for k in (2, 3)]
    wide = concat_weight(layer, layer.weight.detach(), reads)
    assert wide.shape == (11, 8)
    base, parts = split_weight(layer, wide, [2, 3])
    assert torch.equal(base, layer.weight)
    assert all(map(torch.equal, parts, reads))


def test_kinds_are_found_by_class() -> None:
    class Named(example.Conv1D):
        pass

    assert kind_of(Named(2, 3)) is kind_of(example.Conv1D(2, 3))
    assert is_layer(nn.Linear(2, 3))
    assert not is_layer(nn.LayerNorm(3))
    with pytest.raises(TypeError, match="no layer kind is registered for LayerNorm"):
        kind_of(nn.LayerNorm(3))
