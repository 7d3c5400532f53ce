"""A result is a `torch.fx.GraphModule` that others trace again: quantisation, feature extraction, TorchScript."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

import aimgraph
from aimgraph.errors import ConfigError, ExportError
from aimgraph.models_zoo.loader import import_torchvision
from tests.nets import NETS, build, randomise, run, updates_for

OPTIONS: dict[str, dict[str, Any]] = {
    "split": {},
    "concat": {"lowering": "concat"},
    "state": {"updates": "stages", "carry": "state", "shape": (2, 2, 3)},
}


def made(name: str, option: str = "split") -> tuple[aimgraph.AimModule, Tensor]:
    base, x = build(name)
    options = dict(OPTIONS[option])
    if "updates" in options:
        options |= updates_for(base, x)
    return randomise(aimgraph.transform(base, x, **options)).eval(), x


class Doubled(nn.Module):
    """A larger model that a tracer goes through."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", NETS)
def test_it_is_traced_again_alone_and_inside_a_larger_model(name: str, option: str) -> None:
    aim, x = made(name, option)
    for train in (False, True):
        aim.train(train)
        expected = run(copy.deepcopy(aim), x)
        for module in (aim, Doubled(aim)):
            again = fx.symbolic_trace(copy.deepcopy(module))
            assert torch.equal(run(again, x), expected)
            assert {node.op for node in again.graph.nodes} >= {"placeholder", "call_module", "output"}


@pytest.mark.parametrize("name", ["residual", "tokens", "conv1d", "functions"])
def test_so_is_a_folded_one(name: str) -> None:
    aim, x = made(name)
    folded = aimgraph.fold(aim)
    assert torch.equal(fx.symbolic_trace(folded)(x), folded(x))
    assert torch.equal(fx.symbolic_trace(Doubled(folded))(x), folded(x))


def test_what_runs_now_is_what_is_traced() -> None:
    aim, x = made("residual")
    aim.add_memory_set("other")
    with aim.using("other"):
        other, expected = fx.symbolic_trace(aim), aim(x)
    with aimgraph.disable_memory(aim):
        plain, base = fx.symbolic_trace(aim), aim(x)
    assert torch.equal(other(x), expected)
    assert torch.equal(plain(x), base)
    assert not [node for node in plain.graph.nodes if str(node.target).startswith("aim.")]
    with aim.using(["other", "default"]), pytest.raises(ConfigError, match="trace this outside of using"):
        fx.symbolic_trace(aim)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_the_base_is_quantised_as_without_a_memory() -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 3)
    aim = randomise(aimgraph.transform(nn.Sequential(*layers), x)).eval()
    mapping = get_default_qconfig_mapping()
    counts = []
    for module in (aimgraph.strip(aim), aim):
        prepared = quantize_fx.prepare_fx(copy.deepcopy(module).eval(), mapping, (x,))
        torch.testing.assert_close(prepared(x), module(x))
        converted = quantize_fx.convert_fx(prepared)
        assert converted(x).shape == module(x).shape
        assert bool(converted(x).isfinite().all())
        found = [path for path, part in converted.named_modules() if "quantized" in type(part).__module__]
        counts.append([path for path in found if not path.startswith("aim.")])
    assert set(counts[0]) <= set(counts[1])  # a norm behind a layer that reads is no part of that layer


def test_features_are_extracted_by_the_names_of_the_base() -> None:
    import_torchvision()
    from torchvision.models.feature_extraction import create_feature_extractor

    aim, x = made("residual")
    layer = next(name for name, part in aim.named_modules() if isinstance(part, nn.Conv2d) and "aim" not in name)
    seen = []
    aim.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    aim(x)
    extractor = create_feature_extractor(aim, [layer])
    torch.testing.assert_close(extractor(x)[layer].shape, seen[0].shape)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", ["residual", "linear", "tokens", "channels_last", "conv3d", "grouped"])
@pytest.mark.parametrize("form", ["transformed", "folded"])
def test_torchscript_traces_it_whatever_the_grad_mode(form: str, name: str, grad: bool) -> None:
    aim, x = made(name)
    module = aim if form == "transformed" else aimgraph.fold(aim)
    larger = torch.cat([x, x.flip(0)])
    with torch.set_grad_enabled(grad), warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(module, x)
        torch.testing.assert_close(traced(x), module(x))
        torch.testing.assert_close(traced(larger), module(larger))


@pytest.mark.parametrize("make", [lambda aim: aim, aimgraph.fold, Doubled])
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_torchscript_does_not_compile_it_and_the_error_says_what_to_do(make: Callable[[Any], nn.Module]) -> None:
    aim, _ = made("linear")
    with pytest.raises(ExportError, match=r"torch\.jit\.script can't compile .*: .* use torch\.jit\.trace\(module"):
        torch.jit.script(make(aim))
