"""Folded modules compute what they were folded from, without memory arithmetic."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.emit.folded_module import FoldedModule
from tests.nets import NETS, apart, build, randomise, run


def made(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[nn.Module, Tensor]:
    base, x = build(name)
    base, x = base.to(dtype), x.to(dtype)
    aim: nn.Module = randomise(aimgraph.transform(base, x, **options))
    return aim.eval(), x


def arithmetic(folded: nn.Module) -> list[str]:
    """Calls of sources and read layers."""
    targets = [str(node.target) for node in folded.graph.nodes]  # type: ignore[union-attr]
    return [target for target in targets if target.startswith("aim.") and ".maps." not in target]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", NETS)
def test_the_same_without_memory_arithmetic(name: str, dtype: torch.dtype, bound: float) -> None:
    aim, x = made(name, dtype)
    before = {key: value.clone() for key, value in aim.state_dict().items()}
    folded = aimgraph.fold(aim)
    assert isinstance(folded, FoldedModule)
    for other in (folded, folded.train(), copy.deepcopy(folded)):
        assert not any(module.training for module in other.modules())
        assert apart(other, aim, x) <= bound
    assert apart(folded, aim, torch.cat([x, x.flip(0), x])) <= bound
    reads = [read.name for memory in aimgraph.plan(aim).memories for read in memory.reads]
    folds = folded.folds
    assert sorted([*folds.biases, *folds.maps, *folds.left]) == sorted(reads)
    assert bool(folds.left) == bool(arithmetic(folded)) == (name == "output_size")
    assert all(torch.equal(value, before[key]) for key, value in aim.state_dict().items())
    shared = {id(tensor) for tensor in (*aim.parameters(), *aim.buffers())}
    assert not any(id(tensor) in shared for tensor in (*folded.parameters(), *folded.buffers()))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
def test_of_a_module_that_was_converted(dtype: torch.dtype, bound: float) -> None:
    aim, x = made("residual")
    folded = aimgraph.fold(aim.to(dtype))
    assert apart(folded, aim, x.to(dtype)) <= bound


def test_layers_under_several_names() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)])
            self.conv, self.norm = self.parts

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x)) + self.parts[0](x)

    x = torch.randn(2, 3, 8, 6)
    aim = randomise(aimgraph.transform(Named(), x)).eval()
    for fuse in False, True:
        folded = aimgraph.fold(aim, fuse_batchnorm=fuse)
        assert apart(folded, aim, x) <= 1e-5


def test_another_size_is_refused_or_folded_for() -> None:
    aim, x = made("residual")
    folded = aimgraph.fold(aim)
    larger = torch.randn(2, x.shape[1], x.shape[2] + 4, x.shape[3] + 2)
    with pytest.raises(aimgraph.ExampleInputError, match=r"stem\.0: memory was folded into a map of shape \[1, "):
        run(folded, larger)
    assert apart(aimgraph.fold(aim, larger), aim, larger) <= 1e-5


def test_a_part_of_a_model() -> None:
    base = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))})
    whole = randomise(aimgraph.transform(base, torch.zeros(2, 4), within="backbone")).eval()
    folded = aimgraph.fold(whole)
    x = torch.randn(5, 4)
    assert isinstance(folded["backbone"], FoldedModule)
    assert apart(folded["backbone"], whole["backbone"], x) <= 1e-5


def test_it_compiles() -> None:
    aim, x = made("residual")
    folded = aimgraph.fold(aim)
    compiled = torch.compile(folded, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, x), run(folded, x))


def test_what_can_not_be_folded_is_said() -> None:
    base, x = build("residual")
    with pytest.raises(aimgraph.PlanError, match="has no memory"):
        aimgraph.fold(base)
    with pytest.raises(aimgraph.ConfigError, match=r'in concat form \(stem\.0\): transform with lowering="split"'):
        aimgraph.fold(aimgraph.transform(base, x, lowering="concat"))
    aim = aimgraph.transform(base, x)
    with aimgraph.disable_memory(aim), pytest.raises(aimgraph.ConfigError, match="the memory is disabled"):
        aimgraph.fold(aim)


def scaled(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    """A hook that reads members which no graph takes: an attribute, a buffer, a layer by its number, another module."""
    net: Any = module
    return net.unused(output * net.gain + net.stem[0].bias.sum() + net.shift)


def halved(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] * 0.5,)


def flagged(_: nn.Module, inputs: tuple[Tensor], keywords: dict[str, Tensor]) -> Any:
    return (), {"x": inputs[0] if inputs else keywords["x"] + 1}


class Hooked(nn.Module):
    """Has a hook of its own, and members for others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head, self.unused, self.gain = nn.Linear(4, 2), nn.Linear(2, 2), 3.0
        self.register_buffer("shift", torch.randn(2))
        self.register_forward_hook(self.shifted)

    def shifted(self, _: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + self.shift * self.gain

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).mean((2, 3)))


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "own": lambda _: None,
    "forward": lambda net: net.register_forward_hook(scaled),
    "before": lambda net: net.register_forward_pre_hook(halved),
    "keywords": lambda net: net.register_forward_pre_hook(flagged, with_kwargs=True),
    "always": lambda net: net.register_forward_hook(scaled, always_call=True, prepend=True),
}


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("which", HOOKS)
def test_hooks_of_the_model_run_around_the_folded_one(which: str, after: bool, fuse: bool) -> None:
    """Registered before the transform, or on its result."""
    base, x = Hooked().eval(), torch.randn(2, 3, 8, 8)
    if not after:
        HOOKS[which](base)
    aim = randomise(aimgraph.transform(base, x)).eval()
    if after:
        HOOKS[which](aim)
    folded = aimgraph.fold(aim, fuse_batchnorm=fuse)
    wanted = aim(x)
    for module in (folded, copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert torch.allclose(module(x), wanted, atol=1e-5)
    with torch.no_grad():
        folded.get_buffer("shift").add_(1)
    assert torch.allclose(aim(x), wanted)
    whole = aimgraph.fold(nn.Sequential(nn.Identity(), aim), fuse_batchnorm=fuse)
    assert torch.allclose(whole(x), wanted, atol=1e-5)
    assert torch.allclose(aimgraph.merge(aimgraph.transform(base, x)).model.eval()(x), base(x))


def test_gradient_hooks_of_the_model_run_around_the_folded_one() -> None:
    base, x = build("residual")
    seen: list[str] = []
    base.register_full_backward_hook(lambda *_: seen.append("after"))
    base.register_full_backward_pre_hook(lambda *_: seen.append("before"))
    aimgraph.fold(aimgraph.transform(base, x))(x.requires_grad_()).sum().backward()
    assert seen == ["before", "after"]


def test_without_hooks_a_folded_module_holds_what_its_graph_takes() -> None:
    net = Hooked()
    net._forward_hooks.clear()
    folded = aimgraph.fold(aimgraph.transform(net, torch.randn(2, 3, 8, 8)))
    assert not any(name.startswith(("unused", "shift")) for name in folded.state_dict())


@pytest.mark.parametrize("what", ["fold", "merge", "export_onnx", "save"])
def test_a_layer_whose_weights_are_offloaded_is_named(what: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    x = torch.randn(2, 3, 8, 8)
    aim = aimgraph.transform(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), x, start="drawn").eval()
    expected, path = aim(x), tmp_path / "there"
    accelerate.cpu_offload(aim, execution_device=torch.device("cpu"))
    arguments = (aim,) if what in ("fold", "merge") else (aim, path)
    with pytest.raises(
        aimgraph.AimgraphError,
        match=r"^(0|aim\.memory\.source): its (weight|value) is on the meta device .* needs them: .*hook",
    ):
        getattr(aimgraph, what)(*arguments)
    accelerate.hooks.remove_hook_from_submodules(aim)
    assert not path.exists()
    assert torch.allclose(aimgraph.fold(aim)(x), expected, atol=1e-6)


def with_scale(module: nn.Module, args: Any, kwargs: Any) -> Any:
    del module
    return args, {**kwargs, "scale": 2.0}


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.linear(x) * scale


class Unset(One):
    def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
        return self.linear(x) * scale


@pytest.mark.parametrize("kind", [One, Unset])
def test_hooks_that_give_a_forward_other_arguments(kind: type[nn.Module], tmp_path: Path) -> None:
    base, x = kind().eval(), torch.randn(3, 4)
    base.register_forward_pre_hook(with_scale, with_kwargs=True)
    if kind is Unset:
        wanted = r"Its hooks \(with_scale\) may give .* give the forward's own"
        with pytest.raises(aimgraph.ExampleInputError, match=wanted):
            aimgraph.transform(base, x)
    else:
        aim = aimgraph.transform(base, x).eval()
        with pytest.warns(UserWarning, match=r"'scale' was 1.0"):
            assert torch.equal(aim(x), base(x))
        with pytest.raises(aimgraph.ExampleInputError, match=r"hooks around the forward \(with_scale\) give .*'scale'"):
            aimgraph.fold(aim)
        with pytest.raises(aimgraph.ExportError, match=r"hooks around its forward \(with_scale\) give it other"):
            aimgraph.export_onnx(aim, tmp_path / "model.onnx")
    aim = randomise(aimgraph.transform(base, {"x": x, "scale": 3.0})).eval()
    torch.testing.assert_close(aimgraph.fold(aim)(x), aim(x))
    assert aimgraph.export_onnx(aim, tmp_path / "model.onnx").relative_difference < 1e-5
