"""Names for layers that are alike."""

import doctest

import pytest

from aimgraph.planning import alike
from aimgraph.planning.alike import common_name, folded, stage


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("conv1", "conv1"),
        ("layer3.0.conv1", "layer3."),
        ("layer3.5.downsample.0", "layer3."),
        ("blocks.11.mlp.fc2", "blocks."),
        ("features.denseblock1.denselayer4.conv1", "features.denseblock"),
        ("encoder.layers.encoder_layer_3.mlp.0", "encoder.layers.encoder_layer_"),
        ("branch1.conv", "branch"),
        ("head.fc1", "head.fc1"),
    ],
)
def test_stages(path: str, expected: str) -> None:
    assert stage(path) == expected


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["layer3.0.conv1"], "layer3.0.conv1"),
        (["blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.2.attn.qkv"], "blocks.0-2.attn.qkv"),
        (["layer3.0.conv3", "layer3.1.conv1", "layer3.1.conv2"], "layer3.0-1"),
        (["layer3.0.conv1", "layer3.0.downsample.0"], "layer3.0"),
        (["stages.1.blocks.0.fc", "stages.1.blocks.3.fc"], "stages.1.blocks.0,3.fc"),
        (["features.0", "features.2", "features.5", "features.7"], "features.0-7"),
        (["layers.encoder_layer_0.mlp.0", "layers.encoder_layer_10.mlp.0"], "layers.encoder_layer_0,10.mlp.0"),
        (["mix", "mix.linear_0"], "mix"),
    ],
)
def test_common_names(paths: list[str], expected: str) -> None:
    assert common_name(paths) == expected


def test_layers_of_a_stage_and_a_kind_are_one_group() -> None:
    paths = ["stem", "a.0.x", "a.0.y", "a.1.x", "b.0.x", "a.1.y"]
    kinds = {"a.0.y": 2, "a.1.y": 2}
    assert folded(paths, str, lambda path: kinds.get(path, 1)) == [
        ["stem"],
        ["a.0.x", "a.1.x"],
        ["a.0.y", "a.1.y"],
        ["b.0.x"],
    ]


def test_the_example_in_the_docs() -> None:
    assert doctest.testmod(alike) == doctest.TestResults(failed=0, attempted=2)
