"""The concat form and the split form compute the same, outputs and gradients, for every layer kind."""

import pytest
import torch
from torch import nn

import aimgraph
from tests.marks import mostly_slow
from tests.nets import NETS, build, gradients, randomise, run, updates_for

TOLERANCE = 1e-9

OPTIONS: dict[str, dict[str, object]] = {
    "reshape": {"shape": (2, 3, 5)},
    "one_channel": {"shape": (1, 2, 2)},
    "resize": {"shape": (2, 3, 2), "read": "resize"},
    "resize_updates": {"shape": (2, 3, 2), "read": "resize", "updates": "stages"},
    "updates": {"shape": (2, 2, 3), "updates": "stages"},
    "pooled_gated": {"shape": (2, 2, 3), "updates": "stages", "pool": "batch", "mode": "gated"},
    "state": {"shape": (2, 2, 3), "updates": "stages", "carry": "state"},
    "ones_conv": {"shape": (2, 2, 3), "source": "ones_conv"},
}


def both_forms(name: str, **options: object) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """Split and concat form with the same random memory, in float64."""
    base, x = build(name, torch.float64)
    if "updates" in options:
        options |= updates_for(base, x)
    split = randomise(aimgraph.transform(base, x, lowering="split", verify="full", **options))
    concat = aimgraph.transform(base, x, lowering="concat", verify="full", **options)
    concat.load_state_dict(split.state_dict())
    return split, concat, x


@pytest.mark.parametrize("option", mostly_slow(OPTIONS, kept=["reshape", "resize_updates", "state"]))
@pytest.mark.parametrize("name", NETS)
def test_outputs_and_gradients_agree(name: str, option: str) -> None:
    split, concat, x = both_forms(name, **OPTIONS[option])
    for train in (False, True):
        split.train(train), concat.train(train)
        expected, seen = run(split, x), run(concat, x)
        assert (expected - seen).abs().max() <= TOLERANCE
        one, other = gradients(split, x), gradients(concat, x)
        assert set(one) == set(other)
        for key, gradient in one.items():
            assert (gradient - other[key]).abs().max() <= TOLERANCE * max(1.0, float(gradient.abs().max())), key
        assert any(key.startswith("aim.") and gradient.abs().max() > 0 for key, gradient in one.items())


@pytest.mark.parametrize("name", NETS)
def test_memory_makes_a_difference(name: str) -> None:
    """The agreement above would hold for two forms that both ignore the memory."""
    base, x = build(name, torch.float64)
    aim = randomise(aimgraph.transform(base, x, shape=(2, 3, 5))).eval()
    base.eval()
    assert (base(x) - aim(x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["conv2d", "tokens", "transposed2d", "grouped", "shared", "channels_last", "conv3d"])
def test_forms_agree_at_another_batch_size_and_resolution(name: str) -> None:
    split, concat, x = both_forms(name, shape=(2, 3, 5))
    larger = torch.nn.functional.pad(x, (0, 2) if x.dim() == 3 and name != "tokens" else (0, 0, 0, 2))
    for sample in (x[:1], torch.cat([x, x, x]), larger):
        assert (split(sample) - concat(sample)).abs().max() <= TOLERANCE


def test_concat_form_really_widens() -> None:
    base, x = build("grouped")
    aim = aimgraph.transform(base, x, lowering="concat", shape=(3, 3, 10))
    conv, k = aim.get_submodule("0"), 3
    assert k == -(-90 // (6 * 7))
    assert (conv.in_channels, conv.weight.shape) == (4 + 2 * k, (6, 2 + k, 3, 3))
    assert not [name for name, _ in aim.named_parameters() if ".reads." in name]
    assert base.get_submodule("0").weight.shape == (6, 2, 3, 3)


def test_layers_that_transform_their_weight_stay_in_split_form() -> None:
    for name, path in (("standardised", "0"), ("weight_norm", "0")):
        base, x = build(name)
        plan = aimgraph.plan(base, x, lowering="concat")
        forms = {read.site: (read.lowering, read.note) for read in plan.memories[0].reads}
        assert forms[path][0] == "split"
        assert "transformed before use" in forms[path][1]
        assert forms["1" if name == "weight_norm" else "2"][0] == "concat"


def test_tied_weights_stay_in_split_form() -> None:
    base = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    base[2].weight = base[0].weight
    aim = aimgraph.transform(base, torch.zeros(2, 4), lowering="concat", shape=(3,))
    assert aim.get_submodule("0").weight is aim.get_submodule("2").weight
    assert {read.lowering for read in aimgraph.plan(aim).memories[0].reads} == {"split"}


def test_two_memories_at_one_site() -> None:
    base, x = build("grouped", torch.float64)
    configs = [
        aimgraph.AimConfig(name="first", shape=(2, 2, 3)),
        aimgraph.AimConfig(name="second", shape=(3, 2, 9), seed=4, sites=("0",)),
    ]
    split = randomise(aimgraph.transform(base, x, config=configs))
    concat = aimgraph.transform(base, x, config=configs, lowering="concat")
    concat.load_state_dict(split.state_dict())
    assert (split(x) - concat(x)).abs().max() <= TOLERANCE
    site = concat._record.concat_sites[0]
    assert site.keys == ("aim.first.reads.0.weight", "aim.second.reads.0.weight")
