"""Every kind of arm: where it begins, what it trains, what it leaves as it is, and what it refuses."""

import copy
import warnings
from itertools import pairwise, product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.api.transform import plan
from aimgraph.emit.parts import named_parts
from aimgraph.errors import AimgraphError, ConfigError, ExampleInputError
from aimgraph.experiment.arms import Made, made
from aimgraph.experiment.arms.features_only import FeaturesOnly
from aimgraph.experiment.recipe import Arm, Kind, Recipe, recipe_of
from aimgraph.runtime.reads.reshape import reshape
from aimgraph.runtime.specs import BlockSpec

pytestmark = pytest.mark.filterwarnings("ignore:features-only. 1 of 3 updates")

KINDS: tuple[Kind, ...] = get_args(Kind)
PARTS = ("last-layer", "biases", "norms", "full", "lora")
MEMORY: dict[str, Any] = {"shape": (4, 4, 2)}


def network() -> nn.Module:
    """[B, 1, 8, 8] -> [B, 10]; drops features and has running statistics."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.Conv2d(8, 16, 3, 2, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


def recipe(model: str = "network", **changed: Any) -> Recipe:
    base = {"name": "arms", "data": {"name": "digits"}, "arms": {"base": {"kind": "base"}}, "epochs": 1}
    return recipe_of(base | {"model": f"{__name__}:{model}"} | changed)


def arm(kind: str, also: tuple[str, ...] = (), **options: Any) -> Arm:
    memory = {} if kind in PARTS or kind == "base" else MEMORY
    return Arm.model_validate({"kind": kind, "options": memory | options, "also": also, "rank": 2})


def build(kind: str, *, model: str = "network", frozen: bool = False, x: Tensor | None = None, **given: Any) -> Made:
    return made(recipe(model, frozen=frozen), arm(kind, **given), 3, images() if x is None else x)


def images(count: int = 2, side: int = 8) -> Tensor:
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(1))


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def step(one: Made, x: Tensor) -> None:
    """One step of training."""
    one.module.train()
    outputs = one.module(x)
    F.cross_entropy(outputs, torch.arange(len(x)) % outputs.shape[1]).backward()
    torch.optim.SGD(one.learns.values(), lr=0.5).step()


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers."""
    return {name: one.detach().clone() for name, one in (*module.named_parameters(), *module.named_buffers())}


def of_base(name: str) -> str:
    """The name in the base of a tensor of an arm."""
    return name.removeprefix("base.").removeprefix("model.").replace(".base_layer", "")


NEEDS_FROZEN = ("values", *PARTS)
UNFROZEN = [kind for kind in KINDS if kind not in (*NEEDS_FROZEN, "author", "wide")]
FROZEN = [kind for kind in KINDS if kind not in ("author", "wide")]


@pytest.mark.parametrize(("kind", "frozen"), [(kind, False) for kind in UNFROZEN] + [(kind, True) for kind in FROZEN])
def test_arms_begin_as_the_base(kind: str, frozen: bool) -> None:
    torch.manual_seed(3)
    base = network().eval()
    before = torch.random.get_rng_state()
    one, x = build(kind, frozen=frozen), images(5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.module.eval()(x), base(x))
    mine = {of_base(name): tensor for name, tensor in tensors(one.module).items()}
    assert all(torch.equal(mine[name], tensor) for name, tensor in tensors(base).items())
    assert one.added == count(one.module) - count(base)


@pytest.mark.parametrize("also", [(), ("norms", "last-layer")])
@pytest.mark.parametrize("kind", FROZEN)
def test_nothing_of_a_frozen_base_moves(kind: str, also: tuple[str, ...]) -> None:
    one = build(kind, frozen=True, also=also)
    before = tensors(one.module)
    if not one.learns:
        assert kind == "base"
        one.module.train()(images(6))
    else:
        step(one, images(6))
    after = tensors(one.module)
    base = {name for name, _ in network().named_parameters()} | {name for name, _ in network().named_buffers()}
    held = [name for name in before if of_base(name) in base and name not in one.learns]
    assert all(torch.equal(before[name], after[name]) for name in held)
    assert {of_base(name) for name in held} | {of_base(name) for name in one.learns} >= base
    trained = {of_base(name) for name in one.learns} & base
    if kind not in ("full", "biases", "norms", "last-layer"):
        assert trained == ({"1.weight", "1.bias", "8.weight", "8.bias"} if also else set())
    assert {"1.running_mean", "1.num_batches_tracked"} <= {of_base(name) for name in held}
    if also:
        assert all(not torch.equal(before[name], after[name]) for name in one.learns if of_base(name) in trained)


def test_what_arms_train() -> None:
    found = {kind: build(kind) for kind in UNFROZEN}
    source = "aim.memory.source.value"
    base, memory = set(found["base"].learns), set(found["static"].memory)
    assert (found["base"].added, len(base), len(memory)) == (0, 8, 4)
    assert set(found["static"].learns) == base | memory
    for kind in ("random", "zero", "coordinates"):
        assert set(found[kind].learns) == base | memory - {source}
    assert not any(found["zero"].module.get_parameter(source))
    drawn = found["static"].module.get_parameter(source)
    assert torch.equal(found["random"].module.get_parameter(source), drawn)
    unread = "aim.memory.updates.1."  # the next update alone would see it
    before = "aim.memory.reads.0.weight"  # no update stands before its layer
    blocks = {name for name in found["update"].learns if not name.startswith(unread)} - {source, before}
    assert {name.replace(".inner", "") for name in found["features-only"].learns} == blocks
    assert not any(found["features-only"].module.get_parameter(source))
    assert set(found["state"].learns) == set(found["article"].learns) == set(found["update"].learns)
    assert "aim.memory.carry.state" in dict(found["state"].module.named_buffers())
    assert "aim.memory.carry.state" not in dict(found["update"].module.named_buffers())
    assert len(found["bias-map"].learns) == 11


def test_what_arms_train_beside_a_frozen_base() -> None:
    learns = {kind: set(build(kind, frozen=True).learns) for kind in FROZEN}
    assert learns["base"] == set()
    assert learns["last-layer"] == {"model.8.weight", "model.8.bias"}
    assert learns["biases"] == {f"model.{place}.bias" for place in (0, 1, 4, 8)}
    assert learns["norms"] == {"model.1.weight", "model.1.bias"}
    assert len(learns["full"]) == 8
    assert learns["values"] == {"aim.memory.source.value"}
    assert ["lora_" in name for name in learns["lora"]] == [True] * 6
    assert [name.startswith("maps.") for name in learns["bias-map"]] == [True] * 3
    for kind in ("static", "update", "state", "features-only", "zero", "random", "coordinates"):
        assert {name.startswith("aim.") for name in learns[kind]} == {True}
    assert set(build("base", frozen=True, also=("biases",)).learns) == learns["biases"]


def test_options_are_the_memory_s() -> None:
    assert (
        build("static", seed=7)
        .module.get_parameter("aim.memory.source.value")
        .ne(build("static").module.get_parameter("aim.memory.source.value"))
        .any()
    )
    named = build("update", updates=("4",)).module
    assert [update.spot.where for update in _plan(named).memories[0].updates] == ["4"]
    assert len(_plan(build("update").module).memories[0].updates) == 3
    assert _plan(build("article", rate=0.5).module).memories[0].config.rate == 0.5
    concat = build("static", lowering="concat")
    assert set(concat.memory) == {"aim.memory.source.value"}


def _plan(module: nn.Module) -> Any:
    return plan(module)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "static", "updates": "stages"}, "'static' .*updates='stages'.*\"update\".*\"state\""),
        ({"kind": "zero", "updates": ("0",)}, "'zero' .*\"update\""),
        ({"kind": "random", "updates": "stages"}, "'random' .*\"update\""),
        ({"kind": "coordinates", "updates": "stages"}, "'coordinates' .*\"update\""),
        ({"kind": "values", "updates": "stages", "frozen": True}, "'values' .*\"update\""),
        ({"kind": "bias-map", "updates": "stages"}, "'bias-map' .*\"update\""),
        ({"kind": "update", "updates": "stages", "carry": "state"}, "carry='state': leave it out, .*\"state\""),
        ({"kind": "state", "updates": "stages", "carry": "gradient"}, "sets carry='state'.*carry='gradient'"),
        ({"kind": "features-only", "updates": "stages", "carry": "state"}, "no memory to carry"),
        ({"kind": "coordinates", "source": "ones_conv"}, "sets source='coordinates'.*'ones_conv': leave source out"),
        ({"kind": "values", "start": "drawn", "frozen": True}, "sets start='zero_values'"),
        ({"kind": "random", "start": "zero_values"}, 'trainable=False with start="zero_values"'),
        ({"kind": "wide", "frozen": True}, "another one than a frozen base"),
        ({"kind": "static", "lowering": "concat", "frozen": True}, 'lowering = "split"'),
        ({"kind": "author"}, "'author' is for zoo/resnet50_keras.*test_arms:network has not"),
        ({"kind": "static", "also": ("biases",)}, "also = .'biases'. .*set frozen = true"),
        ({"kind": "static", "within": "9"}, "within: Sequential has no submodule '9'"),
        *(
            ({"kind": kind}, f"the arm '{kind}' .*frozen base: set frozen = true, or leave it out")
            for kind in NEEDS_FROZEN
        ),
    ],
)
def test_what_does_not_go_together_is_named(given: dict[str, Any], message: str) -> None:
    given = dict(given)
    kind, frozen, also = given.pop("kind"), given.pop("frozen", False), given.pop("also", ())
    options = given if kind in PARTS else MEMORY | given
    with pytest.raises(AimgraphError, match=message):
        made(recipe(frozen=frozen), Arm(kind=kind, options=options, also=also), 0, images())


def test_updates_that_nothing_reads_are_no_updates() -> None:
    for kind in ("update", "features-only"):
        with pytest.raises(ConfigError, match=f"the arm '{kind}' of .*Whole would write nothing that is read"):
            build(kind, model="Whole", within="part")
    assert build("state", model="Whole", within="part").memory


def test_coordinates_lie_on_the_smallest_grid() -> None:
    for model, x in (("network", images()), ("dense", torch.randn(2, 64))):
        found, drawn = (
            _plan(made(recipe(model), Arm(kind=kind), 0, x).module).memories[0].shape
            for kind in ("coordinates", "static")
        )
        assert found == ((*drawn[:2], 2) if len(drawn) == 3 else drawn)


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


# features-only


@pytest.mark.parametrize("gated", [False, True])
def test_a_block_that_sees_features_only(gated: bool) -> None:
    spec = BlockSpec((2, 2, 3), 5, (4, 4), gated, reshape)
    block = FeaturesOnly(spec, "conv_sigmoid").eval()
    memory, features = torch.randn(2, 12, requires_grad=True), torch.randn(2, 5, 4, 4)
    given = block(memory, features)
    assert given.shape == (2, 12)
    assert torch.equal(given, block(torch.randn(2, 12), features))
    assert not torch.equal(given, block(memory, torch.randn(2, 5, 4, 4)))
    assert torch.autograd.grad(given.sum(), memory, allow_unused=True) == (None,)
    assert torch.equal(block(memory[:1], features), block(memory, features))


@pytest.mark.parametrize("options", [{}, {"mode": "gated"}, {"pool": "batch"}, {"start": "zero_values"}])
def test_no_update_of_features_only_sees_what_an_earlier_one_wrote(options: dict[str, Any]) -> None:
    one, x = build("features-only", **options), images(4)
    same = build("update", **options)
    assert one.added == same.added
    step(one, x)
    first, second = (one.module.get_submodule(f"aim.memory.updates.{number}") for number in range(2))
    seen: list[Tensor] = []
    second.register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    second.register_forward_pre_hook(lambda _, given: (given[0], features))
    features = torch.randn(4, 16, 4, 4)
    one.module.eval()(x)
    first.register_forward_hook(lambda _, __, output: output + torch.randn_like(output))
    one.module(x)
    assert len(seen) == 2
    assert torch.equal(*seen)


# wide


def two_layers() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 16),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(4, 4, 2), (8, 8, 2), (4, 4, 8)])
@pytest.mark.parametrize("model", ["network", "two_layers"])
def test_wide_has_the_parameters_of_the_memory(model: str, shape: tuple[int, ...]) -> None:
    target = build("static", model=model, shape=shape).added
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide = build("wide", model=model, shape=shape)
    assert abs(wide.added - target) <= 0.05 * target
    assert wide.notes == ()
    x, base = images(), build("base", model=model).module.eval()
    torch.testing.assert_close(wide.module.eval()(x), base(x))


def test_wide_comes_as_close_as_channels_allow_and_says_how_far_it_is() -> None:
    target = build("static", model="two_layers", shape=(2, 2, 4)).added
    with pytest.warns(UserWarning, match=rf"wide: 750 parameters more .*the memory adds {target}: 7% apart"):
        wide = build("wide", model="two_layers", shape=(2, 2, 4))
    assert len(wide.notes) == 1

    def more(a: int, b: int, c: int) -> int:
        sizes = (1, 16 + a, 16 + b, 16 + c)
        return sum(9 * i * o + o for i, o in pairwise(sizes)) + 16 * sizes[-1] - (160 + 2 * 16 * 145 + 16 * 16)

    every = [more(*steps) for steps in product(range(8), repeat=3)]
    assert min(every, key=lambda one: abs(one - target)) == wide.added == 750


class Steps(nn.Module):
    """Writes twice before it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool, self.last = nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] -> [B, 10]."""
        out: Tensor = self.last(self.pool(self.first(x)).mean((2, 3)))
        return out


def test_an_update_that_features_only_would_never_see_is_not_trained() -> None:
    updates = ("first", "pool")
    with pytest.warns(UserWarning, match="features-only: 1 of 2 updates are not trained, .*before the next one: first"):
        one = build("features-only", model="Steps", updates=updates)
    assert not any(name.startswith("aim.memory.updates.0") for name in one.learns)
    assert any(name.startswith("aim.memory.updates.1") for name in one.learns)
    assert any(
        name.startswith("aim.memory.updates.0") for name in build("update", model="Steps", updates=updates).learns
    )


# bias maps


class Twice(nn.Module):
    """Calls a layer twice on one size, and one on two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.both, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 2, 1), nn.Linear(2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] -> [B, 10]."""
        x = self.conv(self.conv(x))
        out: Tensor = self.head(self.both(x).mean((2, 3)) + self.both(x[:, :, ::2]).mean((2, 3)))
        return out


def test_bias_maps_of_layers_that_are_called_several_times() -> None:
    one, x = build("bias-map", model="Twice", sites=("conv", "both")), images(3)
    assert {name: tuple(value.shape) for name, value in one.learns.items() if name.startswith("maps.")} == {
        "maps.conv": (1, 1, 8, 8), "maps.both": (1, 2, 8, 8), "maps.both_1": (1, 2, 4, 8),
    }  # fmt: skip
    step(one, x)
    with torch.no_grad():
        maps = {name: value.normal_() for name, value in one.learns.items() if name.startswith("maps.")}
        base: Any = one.module.base
        conv, both = base.conv, base.both
        y = F.conv2d(x, conv.weight, conv.bias, padding=1) + maps["maps.conv"]
        y = F.conv2d(y, conv.weight, conv.bias, padding=1) + maps["maps.conv"]
        whole = F.conv2d(y, both.weight, both.bias) + maps["maps.both"]
        half = F.conv2d(y[:, :, ::2], both.weight, both.bias) + maps["maps.both_1"]
        wanted = base.head(whole.mean((2, 3)) + half.mean((2, 3)))
        torch.testing.assert_close(one.module(x), wanted)


def test_bias_maps_of_a_copy_are_its_own() -> None:
    one, x = build("bias-map"), images()
    copied = copy.deepcopy(one.module).eval()
    with torch.no_grad():
        for value in copied.get_submodule("maps").parameters():
            value.normal_()
    assert not torch.equal(copied(x), one.module.eval()(x))
    assert torch.equal(one.module(x), build("base").module.eval()(x))


def test_bias_maps_have_a_size() -> None:
    one = build("bias-map")
    with pytest.raises(ExampleInputError, match=r"bias-map: 0 gives \[2, 8, 16, 16\], .*\['B', 8, 8, 8\]: .*one size"):
        one.module(images(side=16))


class Pairs(nn.Linear):
    """Gives a pair."""

    def forward(self, x: Tensor) -> Any:
        """The output, twice."""
        return super().forward(x), x


class Functional(nn.Module):
    """Calls functions, and perhaps a layer."""

    def __init__(self, layer: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.last = nn.Parameter(torch.randn(10, 4))
        self.layer = nn.Conv2d(4, 4, 1) if layer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] -> [B, 10]."""
        return F.linear(self.layer(F.conv2d(x, self.weight)).mean((2, 3)), self.last)


def half_functional() -> nn.Module:
    return Functional(True)


def test_bias_maps_skip_what_no_module_makes() -> None:
    with pytest.warns(UserWarning, match="bias-map: 2 of 3 layers have no map, as they are calls of functions"):
        one = build("bias-map", model="half_functional")
    assert [name for name in one.learns if name.startswith("maps.")] == ["maps.layer"]
    assert len(one.notes) == 1
    with pytest.raises(ConfigError, match=r"'bias-map' adds to what modules give, .*Functional .*leave the arm out"):
        build("bias-map", model="Functional")
    with pytest.raises(ConfigError, match=r"'last-layer': the last layer .* is the call of a function"):
        build("last-layer", model="half_functional", frozen=True)


def test_a_bias_map_can_be_what_a_static_memory_is() -> None:
    aim, maps, x = build("static").module, build("bias-map"), images(3)
    with torch.no_grad():
        for name, weight in aim.named_parameters():
            if ".reads." in name:
                weight.normal_(std=0.1)
        outputs: dict[str, Tensor] = {}
        for path in ("0", "4", "8"):
            aim.get_submodule(f"aim.memory.reads.{path}").register_forward_hook(
                lambda _, __, output, path=path: outputs.update({path: output})
            )
        wanted = aim.eval()(x)
        for path, output in outputs.items():
            maps.module.get_parameter(f"maps.{path}").copy_(output)
        torch.testing.assert_close(maps.module.eval()(x), wanted)


# LoRA


class Padded(nn.Conv2d):
    """Pads by itself."""

    def forward(self, x: Tensor) -> Tensor:
        """The same size."""
        return super().forward(F.pad(x, (1, 1, 1, 1)))


def padded() -> nn.Module:
    return nn.Sequential(Padded(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def padded_alone() -> nn.Module:
    return nn.Sequential(Padded(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_lora_says_what_peft_does_not_adapt() -> None:
    with pytest.warns(UserWarning, match="lora: 1 of 2 layers are left out, .*torch's own classes.*: 0"):
        one = build("lora", model="padded", frozen=True)
    assert {name.split(".lora")[0] for name in one.learns} == {"model.4"}
    step(one, images(6))
    with pytest.raises(ConfigError, match=r"peft adapts no layer of .*padded_alone; 0: .*not of torch's own classes"):
        build("lora", model="padded_alone", frozen=True)


class Attends(nn.Module):
    """Takes the weight of a layer, and does not call it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] -> [B, 10]."""
        rows = x.squeeze(1)
        out: Tensor = self.head(self.attention(rows, rows, rows, need_weights=False)[0].mean(1))
        return out


def test_layers_that_attention_does_not_call_are_left_out() -> None:
    with pytest.warns(UserWarning, match=r"lora: 1 of 2 layers are left out, .*not called.*: attention.out_proj"):
        one = build("lora", model="Attends", frozen=True)
    assert {name.split(".lora")[0] for name in one.learns} == {"model.head"}
    with pytest.warns(UserWarning, match=r"bias-map: \d of \d layers have no map, .*attention"):
        maps = build("bias-map", model="Attends", frozen=True)
    assert list(maps.learns) == ["maps.model/head"]


# parts of a model, and the author's network


class Whole(nn.Module):
    """A part that gets the memory, and norms around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.part = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] -> [B, 10]."""
        out: Tensor = self.head(self.part(self.norm(self.stem(x))).mean((2, 3)))
        return out


@pytest.mark.parametrize("kind", ["static", "state", "coordinates", "values"])
def test_a_memory_within_a_part(kind: str) -> None:
    x, base = images(4), build("base", model="Whole").module.eval()
    one = build(kind, model="Whole", frozen=True, within="part")
    assert list(named_parts(one.module)) == ["model.part"]
    assert one.memory == one.learns
    assert torch.equal(one.module.eval()(x), base(x))
    before = tensors(one.module)
    step(one, x)
    assert (one.module.training, named_parts(one.module)["model.part"].training) == (True, True)
    after = tensors(one.module)
    assert all(torch.equal(before[name], after[name]) for name in before if ".aim." not in name)
    written = [name for name in before if not torch.equal(before[name], after[name])]
    assert written
    assert any("carry" in name for name in written) == (kind == "state")


class Block(nn.Module):
    """As those of the author's network are named."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 1), nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, outputs, H, W]."""
        out: Tensor = self.conv2(self.conv1(x).relu()).relu()
        return out


class Author(nn.Module):
    """Four stages of two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            *(nn.Sequential(Block(1 if stage == 0 else 4, 4), Block(4, 4)) for stage in range(4))
        )
        self.head = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] -> [B, 10]."""
        out: Tensor = self.head(self.stages(x).mean((2, 3)))
        return out


def test_the_author_s_two_memories() -> None:
    one = build("author", model="Author", shape=(2, 2, 3))
    first, second = _plan(one.module).memories
    assert (first.name, second.name) == ("memory", "identity")
    assert [read.site for read in first.reads] == [f"stages.{stage}.0.conv1" for stage in range(4)]
    assert (len(first.updates), len(second.updates)) == (3, 0)
    base, mine = build("base", model="Author").module.state_dict(), one.module.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in base.items())
    assert one.added == first.parameters + second.parameters
    step(one, images(4))
    frozen = build("author", model="Author", shape=(2, 2, 3), lowering="split", frozen=True)
    assert frozen.learns == frozen.memory
