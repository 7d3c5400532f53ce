"""Another head, stride or width on a transformed module: an error that says so, and refit."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from tests.nets import randomise, run

X = torch.linspace(-1, 1, 2 * 3 * 12 * 12).reshape(2, 3, 12, 12)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.mid, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.relu(self.last(torch.relu(self.mid(x)))).mean((2, 3)))


def _head(aim: Any) -> None:
    aim.head = nn.Linear(6, 7)


def _one_output(aim: Any) -> None:
    aim.head = nn.Linear(6, 1)


def _stride(aim: Any) -> None:
    aim.last.stride = (2, 2)


def _width(aim: Any) -> None:
    aim.mid, aim.last = nn.Conv2d(8, 10, 3, padding=1), nn.Conv2d(10, 6, 3, padding=1)


def _two_layers(aim: Any) -> None:
    aim.head = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5))


def _removed(aim: Any) -> None:
    aim.last, aim.head = nn.Identity(), nn.Linear(8, 4)


CHANGES: dict[str, tuple[Callable[[Any], None], str, set[str], set[str]]] = {
    "another head": (_head, "head has outputs 7 and had 4", {"stem", "mid", "last"}, {"head"}),
    "one output": (_one_output, "head has outputs 1 and had 4", {"stem", "mid", "last"}, {"head"}),
    "another stride": (_stride, r"last has stride \(2, 2\) and had \(1, 1\)", {"stem", "mid", "head"}, {"last"}),
    "another width": (_width, "mid has outputs 10 and had 8", {"stem", "last", "head"}, {"mid"}),
    "layers added": (
        _two_layers,
        "head is a Sequential and was a Linear",
        {"stem", "mid", "last"},
        {"head.0", "head.2"},
    ),
    "a layer removed": (_removed, "last is a Identity and was a Conv2d", {"stem", "mid", "head"}, set()),
}


def _weights(aim: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in aim.state_dict().items() if key.startswith("aim.")}


def _changed(name: str, **options: Any) -> tuple[Any, Any]:
    aim = randomise(aimgraph.transform(Net().eval(), X, **options))
    before = copy.deepcopy(aim)
    CHANGES[name][0](aim)
    return before, aim.eval()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_layer_is_told_with_the_remedy(name: str, train: bool) -> None:
    _, aim = _changed(name)
    with pytest.raises(aimgraph.PlanError, match=rf"{CHANGES[name][1]}.*aimgraph\.refit\(aim\)"):
        aim.train(train)(X)


@pytest.mark.parametrize("name", CHANGES)
def test_refit_keeps_what_still_fits(name: str) -> None:
    before, aim = _changed(name)
    made, (_, _, kept, anew) = aimgraph.refit(aim), CHANGES[name]
    base, was, now = aimgraph.strip(aim), _weights(before), _weights(made)
    assert {read.site for read in aimgraph.plan(made).memories[0].reads} == kept | anew
    assert torch.equal(now["aim.memory.source.value"], was["aim.memory.source.value"])
    for site in kept:
        assert torch.equal(now[f"aim.memory.reads.{site}.weight"], was[f"aim.memory.reads.{site}.weight"])
    for site in anew:
        assert not now[f"aim.memory.reads.{site}.weight"].any()
        assert any(f"made anew: {', '.join(sorted(anew))}" in note for note in aimgraph.plan(made).notes)
    assert made(X).shape == base(X).shape
    assert not torch.equal(made(X), base(X))  # the reads that were kept still act
    with torch.no_grad():
        for site in kept:
            made.get_parameter(f"aim.memory.reads.{site}.weight").zero_()
    assert torch.equal(made(X), base(X))
    assert torch.equal(aimgraph.strip(made)(X), base(X))


def test_a_swapped_head_leaves_all_else_bit_for_bit() -> None:
    before, aim = _changed("another head")
    made, features = aimgraph.refit(aim), {}
    for name, module in (("before", before), ("made", made)):
        module.head.register_forward_pre_hook(lambda _, args, name=name: features.update({name: args[0]}))
        module(X)
    assert torch.equal(features["before"], features["made"])
    assert torch.equal(made(X), aim.head(features["made"]))
    assert list(made.state_dict()) == list(before.state_dict())
    loss = made.train()(X).square().sum()
    loss.backward()
    assert made.get_parameter("aim.memory.reads.head.weight").grad.any()


def test_refit_with_nothing_changed_is_a_copy() -> None:
    aim = randomise(aimgraph.transform(Net().eval(), X, updates=("mid",), carry="state"))
    run(aim.train(), X)
    made = aimgraph.refit(aim)
    assert made.training
    assert all(torch.equal(one, made.state_dict()[key]) for key, one in aim.state_dict().items())
    assert torch.equal(made.eval()(X), aim.eval()(X))
    assert aimgraph.plan(made).memories[0].config == aimgraph.plan(aim).memories[0].config


def test_sets_updates_and_switches_stay() -> None:
    aim = aimgraph.transform(Net().eval(), X, updates=("mid",), carry="state")
    aim.add_memory_set("b")
    randomise(aim)
    run(aim.train(), X)
    aim.use("b")
    run(aim, X)
    aim.eval().head = nn.Linear(6, 7)
    made = aimgraph.refit(aim)
    assert (made.memory_sets, made.memory_set) == (("default", "b"), "b")
    was, now = _weights(aim), _weights(made)
    assert was.keys() == now.keys()
    assert now["aim.memory.carry.state"].any()
    for key in was:
        anew = key.endswith("reads.head.weight")
        assert torch.equal(was[key], now[key]) != anew
        assert not anew or not now[key].any()
    with aimgraph.disable_memory(aim):
        assert torch.equal(aimgraph.disable_memory(aimgraph.refit(aim)).aim(X), aimgraph.strip(aim)(X))
        assert torch.equal(aimgraph.refit(aim)(X), aimgraph.strip(aim)(X))


def test_sets_that_share_reads_stay() -> None:
    aim = aimgraph.transform(Net().eval(), X, start="drawn")
    aim.add_memory_set("b", share_reads=True)
    nn.init.normal_(aim.get_parameter("aim.sets.b.memory.source.value"))
    aim.head = nn.Linear(6, 7)
    made = aimgraph.refit(aim)
    assert torch.equal(
        made.get_parameter("aim.sets.b.memory.source.value"), aim.get_parameter("aim.sets.b.memory.source.value")
    )
    assert not made.get_parameter("aim.memory.reads.stem.weight").requires_grad
    made.use("b")
    assert made(X).shape == (2, 7)


def test_a_frozen_base_stays_frozen_and_the_new_head_as_it_is() -> None:
    aim = aimgraph.freeze_base(randomise(aimgraph.transform(Net(), X)))
    aim.head = nn.Linear(6, 7)
    made = aimgraph.refit(aim.train())
    assert made.training
    assert not made.norm.training
    wanting = {name for name, parameter in made.named_parameters() if parameter.requires_grad and "aim." not in name}
    assert wanting == {"head.weight", "head.bias"}
    statistics = made.norm.running_mean.clone()
    made(X)
    assert torch.equal(made.norm.running_mean, statistics)


def test_a_part_of_a_larger_model() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.out = Net(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.net(x))

    aim = randomise(aimgraph.transform(Outer().eval(), X, within="net"))
    aim.net.head, aim.out = nn.Linear(6, 7), nn.Linear(7, 2)
    with pytest.raises(aimgraph.PlanError, match=r"head has outputs 7.*refit"):
        aim(X)
    made = aimgraph.refit(aim)
    assert type(made) is Outer
    assert aimgraph.plan(made).memories[0].config.within == "net"
    assert made(X).shape == (2, 2)


def test_a_change_inside_what_is_one_call() -> None:
    class Asking(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 1e6 else x + 1)

    aim = randomise(aimgraph.transform(Asking().eval(), X))
    aim.head = nn.Linear(6, 7)
    with pytest.raises(aimgraph.PlanError, match=r"head has outputs 7 and had 4.*refit"):
        aim(X)
    assert aimgraph.refit(aim)(X).shape == (2, 7)


def test_other_inputs_are_given() -> None:
    aim = randomise(aimgraph.transform(Net().eval(), X))
    aim.stem = nn.Conv2d(1, 8, 3, padding=1)
    made = aimgraph.refit(aim, X[:, :1])
    assert torch.equal(
        made.get_parameter("aim.memory.reads.stem.weight"), aim.get_parameter("aim.memory.reads.stem.weight")
    )
    assert made(X[:, :1]).shape == (2, 4)


def test_new_reads_of_a_memory_without_values_are_drawn() -> None:
    aim = aimgraph.transform(Net().eval(), X, start="drawn")
    nn.init.zeros_(aim.get_parameter("aim.memory.source.value"))
    aim.head = nn.Linear(6, 7)
    made = aimgraph.refit(aim)
    assert made.get_parameter("aim.memory.reads.head.weight").any()  # or neither would ever learn
    assert torch.equal(made(X), aimgraph.strip(aim)(X))


def test_what_cannot_be_refitted_is_refused() -> None:
    aim = aimgraph.transform(Net().eval(), X, lowering="concat")
    aim.head = nn.Linear(6, 4)
    with pytest.raises(aimgraph.PlanError, match="head has no place for its read weights"):
        aim(X)
    with pytest.raises(aimgraph.ConfigError, match=r"refit.*in concat form"):
        aimgraph.refit(aim)
    with pytest.raises(aimgraph.PlanError, match="has no memory"):
        aimgraph.refit(Net())


class Deciding(nn.Module):
    """One call as a whole, which has no concat form."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(h + 1 if float(h.detach().sum()) > 1e9 else h)


def test_refit_where_concat_was_asked_for_and_nothing_has_it() -> None:
    x = torch.randn(4, 3)
    aim = randomise(aimgraph.transform(Deciding(), x, lowering="concat")).eval()
    assert torch.equal(aimgraph.refit(aim)(x), aim(x))
    aim.head = nn.Linear(4, 5)
    made = aimgraph.refit(aim)
    assert made(x).shape == (4, 5)
    assert aimgraph.plan(made).memories[0].config.lowering == "concat"


class Regression(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


def _dilate(aim: Any) -> None:
    aim.conv.dilation, aim.conv.padding = (2, 2), (2, 2)


def _replace_weight(aim: Any) -> None:
    aim.head.weight, aim.head.bias = nn.Parameter(torch.randn(7, 4)), nn.Parameter(torch.randn(7))


FITTING: dict[str, tuple[Callable[[Any], None], str]] = {
    "more outputs than one": (lambda aim: setattr(aim, "head", nn.Linear(4, 7)), "head has outputs 7 and had 1"),
    "dilation": (
        lambda aim: setattr(aim, "conv", nn.Conv2d(3, 4, 3, padding=2, dilation=2)),
        r"conv has padding \(2, 2\) and had \(1, 1\), dilation",
    ),
    "kernel": (lambda aim: setattr(aim, "conv", nn.Conv2d(3, 4, 5, padding=2)), r"conv has kernel \(5, 5\) and had"),
    "padding": (
        lambda aim: setattr(aim, "conv", nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")),
        "conv has padding_mode circular",
    ),
    "attributes": (_dilate, r"conv has padding \(2, 2\) and had \(1, 1\), dilation"),
    "weight": (_replace_weight, r"head has weight \[7, 4\] and had \[1, 4\]"),
}


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("name", FITTING)
def test_a_change_after_which_all_shapes_fit_is_refused_everywhere(name: str, called: bool, tmp_path: Any) -> None:
    change, said = FITTING[name]
    aim = randomise(aimgraph.transform(Regression().eval(), X)).eval()
    if called:
        aim(X)
    change(aim)
    for function in (
        lambda: aim(X),
        lambda: copy.deepcopy(aim)(X),
        lambda: aimgraph.fold(aim),
        lambda: aimgraph.merge(aim, partial=True),
        lambda: aimgraph.save(aim, tmp_path / "all", what="all"),
        lambda: aimgraph.export_onnx(aim, tmp_path / "model.onnx"),
    ):
        with pytest.raises(aimgraph.PlanError, match=rf"{said}.*aimgraph\.refit\(aim\)"):
            function()
    assert not list(tmp_path.iterdir())
    if name != "weight":  # whose layer contradicts itself
        assert aimgraph.refit(aim)(X).shape == aimgraph.strip(aim)(X).shape


def test_a_layer_of_the_same_outputs_and_options_reads_as_before() -> None:
    aim = randomise(aimgraph.transform(Regression().eval(), X)).eval()
    wanted = aim(X)
    for _ in range(2):
        aim.conv = copy.deepcopy(aim.conv)
        assert torch.equal(aim(X), wanted)
    aim.conv = nn.Sequential(aim.conv)  # what wraps a layer may call it as before
    assert torch.equal(aim(X), wanted)
