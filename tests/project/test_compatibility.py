"""What people do with a model: dtypes, layouts, averages, optimisers, checkpointing, compiling, Ray, torchao."""

import copy
import importlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

import aimgraph
from aimgraph.emit.module import AimModule
from aimgraph.models_zoo.loader import import_torchvision
from aimgraph.units.remote import LOCAL, connected
from tests.emit.test_compile import FORMS, X, compiled
from tests.nets import DropPath, build, randomise, run

WRITTEN: dict[str, Any] = {"shape": (2, 2, 3), "updates": "stages"}
MEMORIES: dict[str, dict[str, Any]] = {
    "static": {"shape": (2, 2, 3)},
    "concat": {"shape": (2, 2, 3), "lowering": "concat"},
    "written": WRITTEN,
    "state": WRITTEN | {"carry": "state"},
}


def made(memory: str, *, zero: bool = False) -> tuple[nn.Module, AimModule, Tensor]:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, **MEMORIES[memory])
    return base, aim if zero else randomise(aim), x


def steady(module: nn.Module) -> nn.Module:
    """Without dropout and drop path, which draw other numbers in another dtype."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, DropPath):
            part.rate = 0.0
    return module


def learned(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of one step in train mode."""
    module.zero_grad()
    output = run(module.train(), x)
    output.to(torch.promote_types(output.dtype, torch.float32)).square().sum().backward()
    return output.detach(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("memory", list(MEMORIES))
def test_a_state_dict_in_a_file_of_torch(memory: str, tmp_path: Path) -> None:
    _, aim, x = made(memory)
    run(aim.train(), x)
    torch.save(aim.state_dict(), tmp_path / "all.pt")
    _, other, _ = made(memory, zero=True)
    assert not torch.equal(run(other.eval(), x), run(aim.eval(), x))
    other.load_state_dict(torch.load(tmp_path / "all.pt", weights_only=True))
    for mode in (False, True):
        assert torch.equal(run(other.train(mode), x), run(aim.train(mode), x))


def test_no_file_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, aim, x = made("state")
    run(aim.train(), x)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("something is pickled")

    with monkeypatch.context() as patched:
        for module, name in ((pickle, "dump"), (pickle, "dumps"), (pickle, "load"), (pickle, "loads")):
            patched.setattr(module, name, refused)
        for name in ("save", "load"):
            patched.setattr(torch, name, refused)
        aimgraph.save(aim, tmp_path / "all", what="all")
        other = aimgraph.load(tmp_path / "all", base)
    assert torch.equal(other.eval()(x), aim.eval()(x))
    files = sorted(tmp_path.rglob("*.*"))
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    for path in files:  # a pickle begins with its protocol, a file of torch.save with that of a zip archive
        assert path.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")


CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "double": lambda module: module.double(),
    "to": lambda module: module.to(torch.float64),
}


@pytest.mark.parametrize("cast", list(CASTS))
@pytest.mark.parametrize("memory", list(MEMORIES))
def test_casts(memory: str, cast: str) -> None:
    """Zero read weights: the base's output; others: close to double precision, gradients included."""
    base, aim, x = made(memory, zero=True)
    base, aim = CASTS[cast](base), CASTS[cast](aim)
    dtype = next(base.parameters()).dtype
    assert {t.dtype for t in (*aim.parameters(), *aim.buffers()) if t.is_floating_point()} == {dtype}
    for mode in (True, False):
        one, other = run(base.train(mode), x.to(dtype)), run(aim.train(mode), x.to(dtype))
        if memory == "concat":  # a wider layer sums in another order
            torch.testing.assert_close(other, one)
        else:
            assert torch.equal(one, other)

    exact = steady(made(memory)[1])
    moved = CASTS[cast](copy.deepcopy(exact))
    expected, wanted = learned(exact.double(), x.double())
    output, gradients = learned(moved, x.to(dtype))
    assert output.dtype == dtype
    assert gradients.keys() == wanted.keys()
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert float((output.double() - expected).norm() / expected.norm()) < 10 * torch.finfo(dtype).eps


@pytest.mark.parametrize("memory", list(MEMORIES))
def test_training_under_autocast(memory: str) -> None:
    base, aim, x = made(memory, zero=True)
    with torch.autocast("cpu", torch.bfloat16):
        (one, wanted), (other, found) = learned(base, x), learned(aim, x)
    assert other.dtype == one.dtype == torch.bfloat16
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    if memory != "concat":
        assert torch.equal(one, other)
        assert all(torch.equal(gradient, found[name]) for name, gradient in wanted.items())
    exact, _ = learned(steady(made(memory)[1]), x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, found = learned(steady(made(memory)[1]), x)
    assert found.keys() == {name for name, _ in aim.named_parameters()}
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())
    assert float((rounded.float() - exact).norm() / exact.norm()) < 10 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("memory", list(MEMORIES))
def test_channels_last(memory: str) -> None:
    """A whole training step is that of the base, bit for bit, and with a memory that of the other layout."""
    base, aim, x = made(memory, zero=True)
    last = x.to(memory_format=torch.channels_last)
    base, aim = base.to(memory_format=torch.channels_last), aim.to(memory_format=torch.channels_last)
    seen = []
    for module in (base, aim):  # what comes after a layer that reads
        norm = module.get_submodule("block.1")
        norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].is_contiguous(memory_format=LAST)))
    (one, wanted), (other, found) = learned(base, last), learned(aim, last)
    assert seen == [True, True]
    if memory != "concat":
        assert torch.equal(one, other)
        assert all(torch.equal(gradient, found[name]) for name, gradient in wanted.items())
    _, aim, _ = made(memory)
    expected, wanted = learned(copy.deepcopy(aim).double(), x.double())
    output, found = learned(aim.double().to(memory_format=LAST), x.double().to(memory_format=LAST))
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


LAST = torch.channels_last


class Around(nn.Module):
    """A model that checkpoints a part of it."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.part, self.head = nn.Linear(6, 8), nn.Sequential(), nn.Linear(8, 3)
        self.part = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.part(x) if self.reentrant is None else checkpoint(self.part, x, use_reentrant=self.reentrant)
        return self.head(torch.relu(x))


def _saved(module: nn.Module, x: Tensor) -> int:
    """Numbers that a forward saves for the backward pass, parameters apart."""
    held = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in held:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(x)
    assert output.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("options", [{}, {"updates": ("0",), "carry": "state"}], ids=["static", "state"])
def test_checkpointing_around_a_transformed_part(options: dict[str, Any], reentrant: bool) -> None:
    x, example = torch.randn(16, 6), torch.randn(2, 8)
    wanted, model = (
        randomise_part(aimgraph.transform(Around(how), example, within="part", shape=(5,), **options))
        for how in (None, reentrant)
    )
    for step in range(3):
        one, two = learned(wanted, x + step), learned(model, x + step)
        assert torch.equal(one[0], two[0])
        torch.testing.assert_close(one[1], two[1], rtol=1e-5, atol=1e-6)
        assert {name for name in two[1] if ".aim." in name} == {n for n, _ in model.named_parameters() if ".aim." in n}
    buffers = dict(wanted.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert _saved(model, x) < _saved(wanted, x) / 3  # checkpointing does what it is for


def randomise_part(model: nn.Module) -> nn.Module:
    randomise(model.get_submodule("part"))
    return model


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("memory", ["static", "concat", "written"])
def test_checkpointing_around_a_whole_model(memory: str, reentrant: bool) -> None:
    _, aim, x = made(memory)
    for module in aim.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # whatever runs twice moves running statistics twice
    wanted = copy.deepcopy(aim)
    x = x.requires_grad_()  # as the reentrant kind needs it
    expected, gradients = learned(wanted, x)

    class OpaqueBase(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.aim = aim

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.aim, x, use_reentrant=reentrant)

    output, found = learned(OpaqueBase(), x)
    assert torch.equal(output, expected)
    torch.testing.assert_close({name.removeprefix("aim."): g for name, g in found.items() if g is not None}, gradients)
    assert _saved(OpaqueBase(), x) < _saved(wanted, x)


@pytest.mark.parametrize("memory", list(MEMORIES))
def test_averaged_models(memory: str) -> None:
    _, aim, x = made(memory)
    average = AveragedModel(aim, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    assert torch.equal(run(average.eval(), x), run(aim.eval(), x))
    steps = []
    optimiser = torch.optim.SGD(aim.parameters(), lr=0.1)
    for _ in range(3):
        learned(aim, x)
        optimiser.step()
        average.update_parameters(aim)
        steps.append({name: value.clone() for name, value in aim.state_dict().items()})
    for name, value in average.module.state_dict().items():
        if value.is_floating_point():  # the first update copies
            expected = (steps[0][name] * 0.75 + steps[1][name] * 0.25) * 0.75 + steps[2][name] * 0.25
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6, msg=name)
    _, other, _ = made(memory)
    other.load_state_dict(average.module.state_dict())
    for mode in (False, True):
        assert torch.equal(run(other.train(mode), x), run(average.train(mode), x))
    assert not torch.equal(run(average.eval(), x), run(aim.eval(), x))
    before = average.module.get_buffer("stem.1.running_mean").clone()
    update_bn([x], average)
    assert not torch.equal(average.module.get_buffer("stem.1.running_mean"), before)
    assert bool(run(average.eval(), x).isfinite().all())


@pytest.mark.parametrize("memory", ["static", "concat"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet10t", "levit_128s"])
def test_rates_of_timm(name: str, memory: str) -> None:
    """Every parameter of the base has the rates that it has without a memory, and every one of a memory has some."""
    import_torchvision()  # timm imports it
    timm = importlib.import_module("timm")
    optim = importlib.import_module("timm.optim")
    net = timm.create_model(name, num_classes=7)
    x = torch.randn(2, *net.pretrained_cfg["input_size"])
    aim = aimgraph.transform(net, x, **MEMORIES[memory])

    def rates(module: nn.Module, **options: float) -> dict[str, tuple[float, float]]:
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        groups = optim.create_optimizer_v2(module, opt="sgd", lr=0.1, weight_decay=0.05, **options).param_groups
        found = [
            (names[id(parameter)], (group.get("lr_scale", 1.0), group["weight_decay"]))
            for group in groups
            for parameter in group["params"]
        ]
        assert len(found) == len(names) == len(dict(found))
        return dict(found)

    options: dict[str, float]
    for options in ({"layer_decay": 0.7}, {}):
        base, given = rates(net, **options), rates(aim, **options)
        assert {key: given[key] for key in base} == base
        assert len({scale for scale, _ in base.values()}) > 1 or not options
        assert all(scale == 1.0 for key, (scale, _) in given.items() if key.startswith("aim."))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_parameter_groups(kind: type[torch.optim.Optimizer]) -> None:
    """Memory and base learn at rates of their own, and an optimiser's state goes on in a copy."""
    net, x = build("linear")  # no layer before a batch norm: the gradient of its bias is nothing but rounding
    aim = randomise(aimgraph.transform(net, x, shape=(4,), updates=("0",), carry="state"))
    assert isinstance(aim, AimModule)
    memory = list(aimgraph.memory_parameters(aim))
    ours = {id(parameter) for parameter in memory}
    base = [parameter for parameter in aim.parameters() if id(parameter) not in ours]
    names = {name for name, parameter in aim.named_parameters() if id(parameter) in ours}
    assert names == {name for name, _ in aim.named_parameters() if name.startswith("aim.")}

    def grouped(module: AimModule) -> torch.optim.Optimizer:
        mine = list(aimgraph.memory_parameters(module))
        rest = [p for name, p in module.named_parameters() if not name.startswith("aim.")]
        return kind([{"params": rest, "lr": 0.0}, {"params": mine, "lr": 0.05}], lr=1.0)  # type: ignore[call-arg]

    before = [parameter.detach().clone() for parameter in (*memory, *base)]
    optimiser = grouped(aim)
    learned(aim, x)
    optimiser.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, (*memory, *base), strict=True)]
    assert moved == [True] * len(memory) + [False] * len(base)
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in base)

    other = copy.deepcopy(aim)
    again = grouped(other)
    again.load_state_dict(copy.deepcopy(optimiser.state_dict()))  # or both would go on with the same tensors
    for module, steps in ((aim, optimiser), (other, again)):
        learned(module, x)
        steps.step()
    assert all(torch.equal(p, q) for p, q in zip(aim.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["split, static", "split, state", "concat, state"])
def test_compiled_training_learns_the_same(form: str) -> None:
    module = FORMS[form]().double()
    twin = copy.deepcopy(module)
    made, _ = compiled(twin)
    for step in range(2):
        expected, gradients = learned(module, X.double() + step)
        output = run(made, X.double() + step)
        twin.zero_grad()
        output.square().sum().backward()
        torch.testing.assert_close(output.detach(), expected, rtol=1e-10, atol=1e-12)
        found = {name: p.grad for name, p in twin.named_parameters()}
        torch.testing.assert_close(found, gradients, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(dict(twin.named_buffers()), dict(module.named_buffers()), rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray with one worker."""
    pytest.importorskip("ray")
    with connected(LOCAL, 1) as ray:
        yield ray


@pytest.mark.parametrize("memory", list(MEMORIES))
def test_ray_computes_the_same_and_sends_it_back(memory: str, ray: Any) -> None:
    _, aim, x = made(memory)
    run(aim.train(), x)

    @ray.remote
    def work(module: nn.Module, x: Tensor) -> tuple[list[Tensor], nn.Module]:
        torch.set_num_threads(1)
        module = copy.deepcopy(module)  # what Ray hands out is read-only
        return [run(module.train(mode), x).detach() for mode in (True, False)], module

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outputs, back = ray.get(work.remote(ray.put(aim), x), timeout=120)
        for mode, output in zip((True, False), outputs, strict=True):
            assert torch.equal(run(aim.train(mode), x), output)
        assert back.state_dict().keys() == aim.state_dict().keys()
        assert all(torch.equal(value, back.state_dict()[key]) for key, value in aim.state_dict().items())
        assert aimgraph.plan(back).to_dict() == aimgraph.plan(aim).to_dict()
    finally:
        torch.set_num_threads(threads)


def _of_the_base(module: nn.Module, path: str) -> bool:
    return isinstance(module, nn.Linear) and "aim" not in path.split(".")


def _torchao() -> Any:
    try:
        return importlib.import_module("torchao.quantization")
    except ImportError as error:
        pytest.skip(f"torchao does not work with torch {torch.__version__}: {error}")


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@pytest.mark.parametrize("options", [{}, WRITTEN | {"shape": (4,), "updates": ("0",)}], ids=["static", "written"])
def test_torchao_quantises_the_base_and_leaves_the_memory(kind: str, options: dict[str, Any]) -> None:
    quantization = _torchao()
    base = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 8)).eval()
    x = torch.randn(5, 32)
    aim = aimgraph.transform(base, x, **options)
    quantised = {}
    for name, module in {"base": copy.deepcopy(base), "aim": aim, "read": randomise(copy.deepcopy(aim))}.items():
        exact = module(x)
        quantization.quantize_(module, getattr(quantization, kind)(), filter_fn=_of_the_base)
        quantised[name] = module
        with torch.no_grad():
            assert 1e-5 < float((module(x) - exact).norm() / exact.norm()) < 0.05
    assert torch.equal(quantised["aim"](x), quantised["base"](x))
    for name, parameter in quantised["read"].named_parameters():
        assert (type(parameter) is nn.Parameter) == (name.startswith("aim.") or name.endswith("bias")), name
    model = aimgraph.freeze_base(quantised["read"])
    if kind == "Int8WeightOnlyConfig":  # torchao gives no gradient where activations are quantised, too
        _, gradients = learned(model, x)
        assert gradients.keys() == {name for name, _ in model.named_parameters() if name.startswith("aim.")}
        assert all(bool(gradient.any()) for gradient in gradients.values())
    other = copy.deepcopy(model)
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_a_torchao_weight_is_refused_with_what_to_do(tmp_path: Path) -> None:
    quantization = _torchao()
    base = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 4))
    quantization.quantize_(base, quantization.Int8WeightOnlyConfig(), filter_fn=lambda _, path: path == "2")
    with pytest.raises(aimgraph.PlanError, match=r"2\.weight is quantised \(Int8Tensor\).*transform the float model"):
        aimgraph.transform(base, torch.randn(2, 32))
    aim = aimgraph.transform(nn.Sequential(nn.Linear(32, 8), nn.ReLU()), torch.randn(2, 32))
    quantization.quantize_(aim, quantization.Int8WeightOnlyConfig(), filter_fn=_of_the_base)
    with pytest.raises(
        aimgraph.CheckpointError, match=r"0\.weight is quantised \(Int8Tensor\): save the memory before"
    ):
        aimgraph.save(aim, tmp_path / "memory")


def _dynamic() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))


def _prepared() -> nn.Module:
    base = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    base.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(base.train())


def _traced() -> nn.Module:
    return torch.jit.trace(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore")  # torch is about to move its quantisation
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_dynamic, r"0 \(Linear\): quantised: .*; quantise after the transform"),
        (_prepared, r"0 \(Linear\): it has a forward hook.*: register it on the result instead"),
        (_traced, r"scripted model, which torch\.fx can't trace: transform the original module"),
    ],
)
def test_what_is_lowered_already_is_refused_with_what_to_do(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(aimgraph.PlanError, match=message):
        aimgraph.transform(build(), torch.randn(2, 4))
