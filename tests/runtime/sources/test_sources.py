"""Where a memory starts."""

import torch
from torch import nn

from aimgraph.config import AimConfig
from aimgraph.planning.parts import Parts
from aimgraph.runtime.sources.ones_conv import OnesConvSource
from aimgraph.runtime.sources.parameter import ParameterSource, drawn_values
from aimgraph.runtime.specs import SourceSpec


def test_parameter_source_gives_its_values() -> None:
    torch.manual_seed(0)
    source = ParameterSource(SourceSpec((100, 100, 4), deviation=0.02))
    assert source().shape == (1, 40_000)
    assert torch.equal(source()[0], source.value)
    assert abs(source.value.std().item() - 0.02) < 1e-3
    assert abs(source.value.mean().item()) < 1e-3


def test_values_are_noise_upon_a_smooth_field() -> None:
    torch.manual_seed(0)
    values = drawn_values((64, 64, 3))
    smooth = nn.functional.avg_pool2d(values.movedim(-1, 0), 9, stride=1)
    assert all(0.5 < float(channel.std()) < 0.8 for channel in smooth)  # noise alone would have 1 / 9
    noise = values.movedim(-1, 0)[:, 4:-4, 4:-4] - smooth
    assert all(0.6 < float(channel.std()) < 0.85 for channel in noise)
    assert not torch.allclose(smooth[0], smooth[1], atol=0.5)


def test_two_channels_tell_two_directions() -> None:
    """Their waves are at right angles: each place has values of its own, as with rows and columns."""
    torch.manual_seed(0)
    for shape in ((64, 64, 2), (64, 32, 2), (1, 400, 2), (400, 1, 2)):
        values = drawn_values(shape).movedim(-1, 0)
        size = tuple(9 if side > 9 else 1 for side in shape[:2])
        smooth = nn.functional.avg_pool2d(values, size, stride=1).reshape(2, -1)
        assert abs(float(torch.corrcoef(smooth)[0, 1])) < 0.2


def test_memories_of_one_row_or_one_place_are_drawn_too() -> None:
    torch.manual_seed(0)
    for shape in ((1000,), (1, 1, 1000), (1, 1000, 1), (1,), (2, 1, 1)):
        values = drawn_values(shape)
        assert values.shape == shape
        assert bool(values.isfinite().all())
        assert shape != (1000,) or abs(float(values.std()) - 1) < 0.1


def test_its_values_need_gradients_only_where_there_are_some() -> None:
    source = ParameterSource(SourceSpec((4,)))
    assert source().requires_grad
    with torch.no_grad():
        assert not source().requires_grad  # a view of a parameter does, and trips up torch's counter of operations


def test_ones_conv_gives_one_vector_at_every_position() -> None:
    source = OnesConvSource(SourceSpec((2, 3, 5)))
    values = source().reshape(2, 3, 5)
    expected = source.layer.weight.sum((1, 2, 3)) + source.layer.bias
    assert torch.allclose(values, expected.expand(2, 3, 5))


def test_ones_dense_gives_weight_plus_bias() -> None:
    source = OnesConvSource(SourceSpec((6,)))
    assert torch.equal(source()[0], source.layer.weight[:, 0] + source.layer.bias)


def test_all_weights_behind_one_value_get_the_same_gradient() -> None:
    source = OnesConvSource(SourceSpec((1, 1, 4)))
    source()[0, 2].backward()
    gradient = source.layer.weight.grad
    assert torch.equal(gradient[2], torch.ones(4, 1, 1))
    assert not gradient[[0, 1, 3]].any()


def test_counts() -> None:
    for kind, shape in (("parameter", (2, 3, 5)), ("ones_conv", (2, 3, 5)), ("ones_conv", (7,)), ("parameter", (7,))):
        spec = SourceSpec(shape)
        source = ParameterSource(spec) if kind == "parameter" else OnesConvSource(spec)
        assert Parts(AimConfig(source=kind, shape=shape)).source_parameters(shape) == sum(
            p.numel() for p in source.parameters()
        )
