"""Models that are a `torch.fx.GraphModule`: from symbolic_trace, feature extraction, torch.export, quantisation."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import aimgraph
from aimgraph.models_zoo.loader import import_torchvision
from aimgraph.torch_private import tree_leaves
from aimgraph.tracing.graph_modules import own_class
from tests.nets import randomise, run

X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *flat, nn.Linear(4, 5))


class _Moded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head((h * 2 if self.training else h).mean((2, 3)))


def _features(model: nn.Module, *nodes: str) -> fx.GraphModule:
    import_torchvision()
    from torchvision.models.feature_extraction import create_feature_extractor

    return create_feature_extractor(model, list(nodes))


def _exported() -> fx.GraphModule:
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(_net().eval(), (X,), dynamic_shapes=dynamic).module()


def _prepared() -> fx.GraphModule:
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    return quantize_fx.prepare_fx(_net().eval(), get_default_qconfig_mapping("x86"), (X,))


class _Named(fx.GraphModule):
    """A class of the user's own."""


BUILDS: dict[str, tuple[Callable[[], fx.GraphModule], list[str]]] = {
    "traced": (lambda: fx.symbolic_trace(_net()), ["0", "5"]),
    "of a class of its own": (lambda: _Named(_net(), fx.symbolic_trace(_net()).graph, "Net"), ["0", "5"]),
    "a layer": (lambda: fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(192, 3))[1]), ["linear_0"]),
    "in eval mode": (lambda: fx.symbolic_trace(_net().eval()), ["0", "5"]),
    "features": (lambda: _features(_net(), "1", "5"), ["0", "5"]),
    "features of two modes": (lambda: _features(_Moded(), "head"), ["stem", "head"]),
    "exported": (_exported, ["conv2d_0", "linear_0"]),
    "prepared": (_prepared, ["0.0", "5"]),
}


def _same(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.filterwarnings("ignore")  # torch is about to move its quantisation
@pytest.mark.parametrize("name", BUILDS)
def test_it_is_transformed_as_any_module(name: str, tmp_path: Path) -> None:
    build, sites = BUILDS[name]
    base, x = build(), X.flatten(1) if name == "a layer" else X
    before, code = copy.deepcopy(base.state_dict()), base.code
    aim = aimgraph.transform(base, x)
    assert [read.site for read in aimgraph.plan(aim).memories[0].reads] == sites
    assert [key for key in aim.state_dict() if not key.startswith("aim.")] == list(before)
    assert base.code == code
    assert _same(base.state_dict(), before)
    for mode in (True, False):
        other = copy.deepcopy(base)  # in train mode, where it is torchvision's
        other = other if name == "exported" else other.train(mode)
        assert _same(run(other, x), run(copy.deepcopy(aim).train(mode), x))
    expected = run(other, x)
    randomise(aim.eval())
    read = run(copy.deepcopy(aim), x)
    assert not _same(read, expected)
    stripped = aimgraph.strip(aim)
    assert own_class(stripped) is own_class(base)
    assert type(stripped).__name__ == type(base).__name__
    assert stripped.code == (base if name == "exported" else base.eval()).code
    assert _same(run(stripped, x), expected)
    aimgraph.save(aim, tmp_path / "memory")
    assert _same(run(aimgraph.load(tmp_path / "memory", base, x).eval(), x), read)
    report = aimgraph.verify(base, aimgraph.transform(base, x), x)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", ["traced", "of a class of its own", "features of two modes"])
def test_it_pickles_and_comes_back(name: str) -> None:
    base = BUILDS[name][0]()
    aim = randomise(aimgraph.transform(base, X))
    other = pickle.loads(pickle.dumps(aim))
    for mode in (True, False):
        stripped = aimgraph.strip(other).train(mode)
        assert own_class(stripped) is own_class(base)
        assert _same(run(stripped, X), run(copy.deepcopy(base).train(mode), X))
        assert _same(run(copy.deepcopy(aim).train(mode), X), run(copy.deepcopy(other).train(mode), X))


def test_a_stripped_one_follows_its_mode() -> None:
    base = _features(_Moded(), "head")
    stripped = aimgraph.strip(aimgraph.transform(base.eval(), X))
    assert not stripped.training
    assert _same(stripped(X), base(X))
    assert _same(stripped.train()(X), base.train()(X))


def test_folding_and_export_take_it() -> None:
    base = fx.symbolic_trace(_net().eval())
    aim = randomise(aimgraph.transform(base, X))
    assert torch.allclose(aimgraph.fold(aim)(X), aim(X), atol=1e-6)
    shared = aimgraph.transform(base, X, inplace=True)
    assert shared.get_parameter("0.weight") is base.get_parameter("0.weight")


def test_its_members_and_attributes_stay() -> None:
    base = fx.symbolic_trace(_net())
    base.unused, base.note = nn.Linear(2, 2), "mine"
    aim = aimgraph.transform(base, X)
    assert "unused.weight" in aim.state_dict()
    assert aim.note == aimgraph.strip(aim).note == "mine"


def test_a_part_that_is_one() -> None:
    whole = nn.Sequential(fx.symbolic_trace(_net()), nn.Linear(5, 2))
    aim = aimgraph.transform(whole, X, within="0")
    assert torch.equal(run(aim, X), run(copy.deepcopy(whole), X))
    assert isinstance(aimgraph.strip(aim)[0], fx.GraphModule)


class _Operators(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        aten = torch.ops.aten
        h = aten.conv2d.default(x, self.stem.weight, self.stem.bias, [1, 1], padding=[1, 1])
        return aten.conv_transpose2d.input(torch.relu(h), self.up.weight, self.up.bias)


def test_operators_of_the_dispatcher_read_in_any_model() -> None:
    base = _Operators()
    aim = aimgraph.transform(base, X)
    assert [read.site for read in aimgraph.plan(aim).memories[0].reads] == ["conv2d_0", "conv_transpose2d_0"]
    assert torch.equal(aim(X), base(X))
    other = pickle.loads(pickle.dumps(randomise(aim)))
    assert torch.equal(other(X), aim(X))


def test_a_graph_that_was_changed_and_not_compiled_is_refused() -> None:
    base = fx.symbolic_trace(_net())
    relu = next(node for node in base.graph.nodes if node.target == "2")
    relu.replace_all_uses_with(relu.args[0])
    base.graph.erase_node(relu)
    with pytest.raises(aimgraph.PlanError, match=r"changed after its forward was compiled.*recompile\(\) first"):
        aimgraph.transform(base, X)
    base.recompile()
    assert torch.equal(run(aimgraph.transform(base, X), X), run(base, X))


def test_one_of_a_fixed_batch_size_is_refused_with_what_to_do() -> None:
    base = torch.export.export(_net().eval(), (X,)).module()
    with pytest.raises(aimgraph.ExampleInputError, match=r"Guard failed.*dynamic_shapes"):
        aimgraph.transform(base, X)
