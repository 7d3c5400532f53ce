"""Values that are not drawn: coordinates and tensors, trained or fixed, wherever a memory goes."""

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph import ConfigError
from aimgraph.runtime.sources.coordinates import coordinates
from tests.nets import build

VALUE = "aim.memory.source.value"
GIVEN = torch.linspace(-2, 2, 4 * 4 * 2).reshape(4, 4, 2)


def made(**options: Any) -> tuple[Any, Tensor]:
    base, x = build("residual")
    return aimgraph.transform(base.eval(), x, **options), x


def test_coordinates_of_a_grid() -> None:
    values = coordinates((3, 5, 2))
    rows, cols = torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 5)
    assert torch.equal(values[..., 0], rows.view(3, 1).expand(3, 5))
    assert torch.equal(values[..., 1], cols.expand(3, 5))
    assert torch.equal(coordinates((5,)), cols)
    assert torch.equal(coordinates((1, 1, 2)), torch.zeros(1, 1, 2))


def test_further_channels_are_waves() -> None:
    values = coordinates((3, 5, 9))
    assert torch.equal(values[..., :2], coordinates((3, 5, 2)))
    places = [one for octave in (1, 2) for wave in (torch.sin, torch.cos) for one in _waves(values, octave, wave)]
    for channel in range(2, 9):
        assert torch.allclose(values[..., channel], places[channel - 2], atol=1e-6)


def _waves(values: Tensor, times: int, wave: Any) -> list[Tensor]:
    return [wave(math.pi * times * values[..., axis]) for axis in (0, 1)]


def test_a_layer_that_reads_coordinates_is_that_of_coordconv() -> None:
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), torch.randn(2, 3, 6, 5)
    aim = aimgraph.transform(base, x, source="coordinates", shape=(6, 5, 2), trainable=False, start="drawn")
    rows, cols = torch.meshgrid(torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 5), indexing="ij")
    wide = torch.cat([x, torch.stack([rows, cols]).expand(2, 2, 6, 5)], dim=1)
    weight = torch.cat([base[0].weight, aim.get_parameter("aim.memory.reads.0.weight")], dim=1)
    expected = nn.functional.conv2d(wide, weight, base[0].bias, padding=1)
    assert torch.allclose(aim(x), expected, atol=1e-5)


def test_a_tensor_gives_the_values() -> None:
    aim, x = made(source=GIVEN)
    assert torch.equal(aim.get_parameter(VALUE), GIVEN.flatten())
    assert torch.equal(aim(x), aimgraph.strip(aim)(x))
    assert aimgraph.plan(aim).memories[0].shape == (4, 4, 2)
    assert "values are given" in str(aimgraph.plan(aim))
    with torch.no_grad():
        aim.get_parameter(VALUE).zero_()
    assert bool(GIVEN.any())  # a copy was made
    base, x = build("residual", torch.float64)
    wide = torch.rand(7, dtype=torch.float64)
    assert torch.equal(aimgraph.transform(base, x, source=wide).get_parameter(VALUE), wide)


@pytest.mark.parametrize("source", ["coordinates", GIVEN], ids=["coordinates", "given"])
@pytest.mark.parametrize("trainable", [True, False])
def test_wherever_a_memory_goes(source: Any, trainable: bool, tmp_path: Path) -> None:
    aim, x = made(source=source, shape=(4, 4, 2), trainable=trainable)
    expected = aim.get_parameter(VALUE).detach().clone()
    aimgraph.save(aim, tmp_path / "memory")
    aim.add_memory_set("b")
    aim.add_memory_set("d")
    aim.remove_memory_set("d")
    base, _ = build("residual")
    loaded = aimgraph.load(tmp_path / "memory", base.eval(), x)
    loaded.add_memory_set("b")
    again = aimgraph.refit(loaded)
    frozen = aimgraph.freeze_base(aimgraph.freeze_base(copy.deepcopy(aim)), False)
    for one in (aim, copy.deepcopy(aim), pickle.loads(pickle.dumps(aim)), loaded, again, frozen):
        for path in (VALUE, "aim.sets.b.memory.source.value"):
            value = one.get_parameter(path)
            assert torch.equal(value, expected)
            assert value.requires_grad is trainable
        assert one.get_parameter("aim.memory.reads.head.weight").requires_grad
    aimgraph.save(again, tmp_path / "again")
    aimgraph.load_memory(loaded, tmp_path / "again")
    assert loaded.get_parameter(VALUE).requires_grad is trainable


def test_trained_values_come_back(tmp_path: Path) -> None:
    aim, x = made(source=GIVEN)
    with torch.no_grad():
        aim.get_parameter(VALUE).add_(1.0)
    aimgraph.save(aim, tmp_path)
    base, _ = build("residual")
    assert torch.equal(aimgraph.load(tmp_path, base, x).get_parameter(VALUE), GIVEN.flatten() + 1)


def test_sets_of_values_keep_those_of_the_default_set() -> None:
    aim, _ = made(source=GIVEN, start="drawn", trainable=False)
    aim.add_memory_set("b", share_reads=True)
    value = aim.get_parameter("aim.sets.b.memory.source.value")
    assert torch.equal(value, GIVEN.flatten())
    assert not value.requires_grad


def test_values_that_are_still_to_come_are_no_option() -> None:
    base, x = build("residual")
    with pytest.raises(ConfigError, match=r"source='given' is how a checkpoint is read: give the tensor itself"):
        aimgraph.transform(base, x, source="given", shape=(4,))
