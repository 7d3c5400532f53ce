"""strip, disable_memory, memory_parameters, freeze_base on what they refuse."""

import copy
import pickle

import pytest
import torch
from torch import nn

import aimgraph
from aimgraph.copies import copy_module
from tests.nets import NETS, build, randomise, run


@pytest.mark.parametrize("lowering", ["split", "concat"])
@pytest.mark.parametrize("name", NETS)
def test_strip_gives_the_base_back(name: str, lowering: str) -> None:
    base, x = build(name)
    aim = randomise(aimgraph.transform(base, x, lowering=lowering))
    before = {name: value.clone() for name, value in aim.state_dict().items()}
    bare = aimgraph.strip(aim)
    assert type(bare) is type(base)
    assert list(bare.state_dict()) == list(base.state_dict())
    assert all(torch.equal(value, bare.state_dict()[key]) for key, value in base.state_dict().items())
    for mode in (True, False):
        assert torch.equal(run(bare.train(mode), x), run(base.train(mode), x))
    assert all(torch.equal(value, aim.state_dict()[key]) for key, value in before.items())
    assert not any(p is q for p in bare.parameters() for q in aim.parameters())
    assert repr(bare) == repr(base)


def test_strip_returns_the_present_weights() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x).train()
    run(aim, x).sum().backward()
    torch.optim.SGD(aim.parameters(), lr=0.1).step()
    bare = aimgraph.strip(aim)
    state = aim.state_dict()
    assert not torch.equal(bare.stem[0].weight, base.stem[0].weight)
    assert all(torch.equal(value, state[key]) for key, value in bare.state_dict().items())
    again = aimgraph.transform(bare, x)
    assert torch.equal(run(again, x), run(bare, x))


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def test_strip_gives_gradients_and_modes_back_as_they_were_before_freeze_base() -> None:
    base, x = build("residual")
    base.stem.requires_grad_(False)  # the user's own choice stays
    aim = aimgraph.freeze_base(aimgraph.freeze_base(aimgraph.transform(base.train(), x)))
    assert not any(value for name, value in flags(aim).items() if not name.startswith("aim."))
    for twin in (aim, copy.deepcopy(aim), pickle.loads(pickle.dumps(aim))):
        bare = aimgraph.strip(twin)
        assert flags(bare) == flags(base)
        assert [module.training for module in bare.modules()] == [module.training for module in base.modules()]
    again = aimgraph.freeze_base(aimgraph.freeze_base(aim, False)).eval()
    assert all(flags(aimgraph.strip(again)).values())
    assert not any(module.training for module in aimgraph.strip(again).modules())


def test_strip_of_a_larger_model_gives_gradients_back_wherever_it_stands() -> None:
    x = torch.randn(2, 4)

    def build_whole() -> nn.Sequential:
        torch.manual_seed(0)
        whole = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 3))
        whole[1].bias.requires_grad_(False)
        return whole

    expected = flags(build_whole())
    for frozen in (
        lambda whole: aimgraph.freeze_base(whole),
        lambda whole: aimgraph.freeze_base(nn.Sequential(whole, nn.ReLU()))[0],
        lambda whole: nn.Sequential(whole, aimgraph.freeze_base(whole[0]))[0],
        lambda whole: aimgraph.freeze_base(nn.Sequential(whole, aimgraph.freeze_base(whole[0])))[0],
    ):
        whole = frozen(aimgraph.transform(build_whole(), x, within="0"))
        assert flags(aimgraph.strip(whole)) == expected
        assert flags(aimgraph.strip(whole[0])) == {"0.weight": True, "0.bias": True}
        wrapped = aimgraph.strip(nn.ModuleDict({"module": whole}))
        assert flags(wrapped) == {f"module.{name}": value for name, value in expected.items()}


@pytest.mark.parametrize("lowering", ["split", "concat"])
@pytest.mark.parametrize("name", NETS)
def test_disabled_memory_computes_the_base(name: str, lowering: str) -> None:
    base, x = build(name)
    aim = randomise(aimgraph.transform(base, x, lowering=lowering))
    for mode in (True, False):
        base.train(mode), aim.train(mode)
        expected = run(copy_module(base), x)
        with aimgraph.disable_memory(aim) as same:
            assert same is aim
            assert torch.equal(run(copy_module(aim), x), expected)
        if not mode:
            assert not torch.equal(run(aim, x), expected)


def test_disable_and_enable() -> None:
    base, x = build("functional_dropout")
    aim = randomise(aimgraph.transform(base, x)).eval()
    with_memory, plain = aim(x), base.eval()(x)
    aimgraph.disable_memory(aim)
    assert torch.equal(aim(x), plain)
    with aimgraph.disable_memory(aim):
        assert torch.equal(aim(x), plain)
    assert torch.equal(aim(x), plain)  # the inner block restores what was before: disabled
    aim.train()
    assert torch.equal(run(copy_module(aim), x), run(copy_module(base).train(), x))
    aimgraph.enable_memory(aim)
    assert torch.equal(aim.eval()(x), with_memory)


def test_gradients_flow_to_widened_weights_while_disabled() -> None:
    base, x = build("grouped")
    aim = randomise(aimgraph.transform(base, x, lowering="concat"))
    with aimgraph.disable_memory(aim):
        aim(x).square().sum().backward()
    base(x).square().sum().backward()
    gradient = aim.get_parameter("0.weight").grad
    assert torch.equal(gradient[:, :2], base[0].weight.grad)
    assert not gradient[:, 2:].any()


def test_memory_parameters_are_everything_below_aim() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, updates="stages")
    expected = [p for name, p in aim.named_parameters() if name.startswith("aim.")]
    assert [id(p) for p in aimgraph.memory_parameters(aim)] == [id(p) for p in expected]
    assert sum(p.numel() for p in expected) == aimgraph.plan(aim).added_parameters


def test_concat_form_is_refused_where_weights_are_mixed() -> None:
    base, x = build("conv2d")
    aim = aimgraph.transform(base, x, lowering="concat")
    with pytest.raises(aimgraph.ConfigError, match=r"memory_parameters can't .* concat form \(0\).*lowering=\"split\""):
        aimgraph.memory_parameters(aim)
    with pytest.raises(aimgraph.ConfigError, match=r"freeze_base can't freeze a part of a weight in concat form"):
        aimgraph.freeze_base(aim)
    assert all(p.requires_grad for p in aim.parameters())


@pytest.mark.parametrize(
    "function",
    [aimgraph.strip, aimgraph.memory_parameters, aimgraph.freeze_base, aimgraph.disable_memory, aimgraph.enable_memory],
)
def test_only_transformed_modules(function: object) -> None:
    with pytest.raises(aimgraph.PlanError, match="this Linear has no memory"):
        function(nn.Linear(2, 2))  # type: ignore[operator]
