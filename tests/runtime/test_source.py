"""Where a memory starts."""

import torch

from aimgraph.runtime.source import OnesConvSource, ParameterSource, source_parameters


def test_parameter_source_gives_its_values() -> None:
    torch.manual_seed(0)
    source = ParameterSource(20_000)
    assert source().shape == (1, 20_000)
    assert torch.equal(source()[0], source.value)
    assert abs(source.value.std().item() - 0.02) < 1e-3
    assert abs(source.value.mean().item()) < 1e-3


def test_its_values_need_gradients_only_where_there_are_some() -> None:
    source = ParameterSource(4)
    assert source().requires_grad
    with torch.no_grad():
        assert not source().requires_grad  # a view of a parameter does, and trips up torch's counter of operations


def test_ones_conv_gives_one_vector_at_every_position() -> None:
    source = OnesConvSource((2, 3, 5))
    values = source().reshape(2, 3, 5)
    expected = source.layer.weight.sum((1, 2, 3)) + source.layer.bias
    assert torch.allclose(values, expected.expand(2, 3, 5))


def test_ones_dense_gives_weight_plus_bias() -> None:
    source = OnesConvSource((6,))
    assert torch.equal(source()[0], source.layer.weight[:, 0] + source.layer.bias)


def test_all_weights_behind_one_value_get_the_same_gradient() -> None:
    source = OnesConvSource((1, 1, 4))
    source()[0, 2].backward()
    gradient = source.layer.weight.grad
    assert torch.equal(gradient[2], torch.ones(4, 1, 1))
    assert not gradient[[0, 1, 3]].any()


def test_counts() -> None:
    for kind, shape in (("parameter", (2, 3, 5)), ("ones_conv", (2, 3, 5)), ("ones_conv", (7,)), ("parameter", (7,))):
        size = int(torch.tensor(shape).prod())
        source = ParameterSource(size) if kind == "parameter" else OnesConvSource(shape)
        assert source_parameters(kind, shape, size) == sum(p.numel() for p in source.parameters())
