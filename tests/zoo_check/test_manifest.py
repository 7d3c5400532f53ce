"""Manifests: a CSV that anybody can write, and what is said about one that is wrong."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from aimgraph.errors import ConfigError
from aimgraph.zoo_check.manifest import (
    Entry,
    _options,
    chosen,
    example,
    is_images,
    read_manifest,
    shapes,
    to_tasks,
    write_manifest,
)
from aimgraph.zoo_check.rows import read_rows
from aimgraph.zoo_check.sources import FOLDER, SLOW, SMALL, SOURCES, list_entries, representatives, shrunk, sized

FULL = Entry(
    "timm/a",
    "2x3x8x8;2x4",
    "2x3x4x4;2x4",
    "features",
    "flag=true;count=3",
    "side=4",
    family="f",
    parameters=7,
    level="onnx",
)


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    entries = [FULL, Entry("package.module:factory")]
    write_manifest(tmp_path / "m.csv", entries)
    assert read_manifest(tmp_path / "m.csv") == entries


def test_a_name_is_enough_and_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    assert read_manifest(written(tmp_path, "\ufeffname\nzoo/mlp\n")) == [Entry("zoo/mlp")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,input\nzoo/mlp,2x3\n", "line 2: .*; got input as well"),
        ("name,inputs\n,2x3\n", "line 2: .* this one has no name"),
        ("name\nzoo/mlp,2x3\n", "line 2: .*; got None as well"),
        ("name,inputs\nzoo/mlp,2x3\nzoo/mlp,2 x 3\n", "line 3: inputs '2 x 3': give sizes joined by x"),
        ("name,small\nzoo/mlp,2x0\n", "line 2: inputs '2x0'"),
        ("name,parameters\nzoo/mlp,2M\n", "line 2: parameters is '2M', not a number"),
        ("name,small_options\nzoo/mlp,features\n", "line 2: small_options 'features': give name=value"),
        ("name,options\nzoo/mlp,features\n", "line 2: options 'features': give name=value"),
        ("name,level\nzoo/mlp,all\n", "line 2: level is 'all'; there are structure, numeric, onnx"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_manifest(written(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_manifest(tmp_path / "none.csv")


@pytest.mark.parametrize(
    "text", ["", "x", "2x", "2x3;", "2X3", "-1x3", "2x3.5", "2x3:integer", "2x3:nn", "=2x3", "2x3<4"]
)
def test_bad_shapes(text: str) -> None:
    with pytest.raises(ConfigError, match="2x3x224x224"):
        shapes(text)


def test_shapes_become_inputs() -> None:
    assert [tuple(t.shape) for t in example("2x3x4;5x6")[0]] == [(2, 3, 4), (5, 6)]


def test_inputs_of_other_types_and_by_keyword() -> None:
    args, kwargs = example("tokens=2x3:int64<4;2x2:float16;mask=2x3:bool;count=3:int32")
    assert [(tensor.dtype, tuple(tensor.shape)) for tensor in args] == [(torch.float16, (2, 2))]
    assert kwargs["tokens"].tolist() == [[0, 1, 2], [3, 0, 1]]
    assert kwargs["mask"].tolist() == [[False, True, False], [True, False, True]]
    assert (kwargs["count"].dtype, kwargs["count"].tolist()) == (torch.int32, [0, 1, 0])
    assert is_images("2x3x8x8;2x3x4x8x8")
    assert not any(map(is_images, ("2x3", "x=2x3x8x8", "2x3x8x8:int64")))


def test_options_and_a_part_of_a_model() -> None:
    entry = Entry("tests.zoo_check.factories:small", options="channels=6", within="0")
    layer = entry.part(entry.build())
    assert isinstance(layer, nn.Conv2d)
    assert layer.out_channels == 6
    assert next(entry.build("meta").parameters()).device == torch.device("meta")
    values = dict(_options("a=true;b=false;c=none;d=-3;e=1.5;f=1e-3;g=gelu;h="))
    assert values == {"a": True, "b": False, "c": None, "d": -3, "e": 1.5, "f": 1e-3, "g": "gelu", "h": ""}
    assert type(values["d"]) is int


def test_smaller_images_that_the_constructor_has_to_know() -> None:
    entry = Entry("tests.zoo_check.factories:positions", inputs="2x3x128x128")
    small = shrunk(entry, "side")
    assert (small.small, small.small_options) == ("2x3x64x64", "side=64")
    assert small.build(small=True)(*example(small.small)[0]).shape == (2, 4)
    assert small.build()(*example(small.inputs)[0]).shape == (2, 4)
    unchanged = (
        (entry, "size"),  # there is no such option
        (replace(entry, inputs="2x3x56x56"), "side"),  # it is as small as it gets
        (replace(entry, inputs="2x3x128x128;2x4"), "side"),
        (Entry("tests.zoo_check.factories:small", inputs="2x3x128x128"), "side"),  # takes any size
    )
    for given, option in unchanged:
        assert shrunk(given, option) == given


def test_filters() -> None:
    entries = [Entry("timm/resnet18", parameters=11_000_000), Entry("zoo/mlp", parameters=1000), Entry("a.b:c")]
    assert chosen(entries) == entries
    assert [entry.name for entry in chosen(entries, "resnet*")] == ["timm/resnet18"]
    assert [entry.name for entry in chosen(entries, "timm/*")] == ["timm/resnet18"]
    assert [entry.name for entry in chosen(entries, largest=1)] == ["zoo/mlp", "a.b:c"]
    with pytest.raises(ConfigError, match=r"--filter renset\* leaves none of 3 models, e\.g\. timm/resnet18"):
        chosen(entries, "renset*")
    with pytest.raises(ConfigError, match=r"--filter timm/\* --largest 1 leaves none of 3"):
        chosen(entries, "timm/*", 1)
    with pytest.raises(ConfigError, match="this list leaves none of 0 models"):
        chosen([])


def test_the_smallest_of_every_family() -> None:
    entries = [
        Entry("timm/b", family="res", parameters=9),
        Entry("timm/unknown", family="res"),
        Entry("timm/a", family="res", parameters=5),
        Entry("torchvision/c", family="res", parameters=7),
        Entry("own.a:a"),
        Entry("own.b:b", parameters=3),
    ]
    assert {entry.name for entry in chosen(entries, smallest=True)} == {"timm/a", "torchvision/c", "own.a:a", "own.b:b"}
    assert [entry.name for entry in chosen(entries, "timm/[bu]*", smallest=True)] == ["timm/b"]


def test_a_model_of_two_manifests_runs_once() -> None:
    entry = Entry("zoo/mlp")
    assert to_tasks([entry, entry, replace(entry, level="onnx")], "structure") == [
        (entry, "structure"),
        (replace(entry, level="onnx"), "onnx"),
    ]
    other = Entry("zoo/mlp", inputs="2x784")
    with pytest.raises(
        ConfigError, match=r"two entries for zoo/mlp at level structure differ.*give one of them a title"
    ):
        to_tasks([entry, other], "structure")
    assert len(to_tasks([entry, replace(other, title="zoo/mlp of digits")], "structure")) == 2


def test_sizes_are_counted_even_where_a_constructor_needs_values() -> None:
    assert sized(Entry("tests.zoo_check.factories:small")).parameters == 3 * 4 * 9 + 4 + 4 * 2 + 2
    assert sized(Entry("tests.zoo_check.factories:Undecided")).parameters == 3 * 2 + 2
    assert sized(Entry("tests.zoo_check.factories:none")).parameters == 0


def test_our_own_networks_are_all_listed() -> None:
    assert list(list_entries("zoo")) == read_manifest(FOLDER / "zoo.csv")


def test_the_ci_manifest_is_the_generated_one_and_has_every_family() -> None:
    entries = read_manifest(FOLDER / "ci.csv")
    assert entries == representatives()
    known = [entry for source in SOURCES for entry in read_manifest(FOLDER / f"{source}.csv")]
    kind = lambda entry: (entry.name.partition("/")[0], entry.family)  # noqa: E731
    assert {kind(entry) for entry in entries} == {kind(entry) for entry in known}
    computed = {kind(entry) for entry in entries if entry.level == "numeric"}
    assert computed == {
        kind(entry) for entry in known if 0 < entry.parameters <= SMALL[kind(entry)[0]] and entry.family not in SLOW
    }


def test_the_expected_results_are_those_of_the_ci_manifest() -> None:
    expected = read_rows(FOLDER / "expected" / "ci.csv")
    assert set(expected) == {(entry.name, entry.level) for entry in read_manifest(FOLDER / "ci.csv")}
