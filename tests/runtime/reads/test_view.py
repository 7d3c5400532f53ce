"""The read, against a slow reference that places one value at a time."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from aimgraph.runtime.reads.reshape import read_channels, read_style
from aimgraph.runtime.reads.view import (
    ViewSpec,
    batch_mean,
    expand_batch,
    fit,
    interleave,
    read_view,
)


def reference(memory: Tensor, grid: tuple[int, ...]) -> Tensor:
    """[B, N] -> [B, *S, k], value by value, straight from the words of the definition."""
    samples, size = memory.shape
    positions = math.prod(grid)
    k = 1
    while k * positions < size:
        k += 1
    out = torch.zeros(samples, *grid, k, dtype=memory.dtype)
    side = 1
    while side * side < size:
        side += 1
    centred = k == 1 and len(grid) == 2 and all(side <= length for length in grid)
    for sample in range(samples):
        for index in range(size):
            if centred:
                row = (grid[0] - side) // 2 + index // side
                column = (grid[1] - side) // 2 + index % side
                out[sample, row, column, 0] = memory[sample, index]
                continue
            position, channel = index // k, index % k
            place = []
            for length in reversed(grid):
                place.append(position % length)
                position //= length
            out[(sample, *reversed(place), channel)] = memory[sample, index]
    return out


def spec(size: int, grid: tuple[int, ...], batch_axis: int | None = 0, channel_axis: int | None = None) -> ViewSpec:
    last = len(grid) + (batch_axis is not None)
    axis = last if channel_axis is None else channel_axis
    return ViewSpec(read_style(size, grid), size, grid, read_channels(size, grid), batch_axis, axis)


def memory_of(size: int, samples: int = 1) -> Tensor:
    return torch.arange(1.0, samples * size + 1).reshape(samples, size)


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 120),
    grid=st.lists(st.integers(1, 7), min_size=0, max_size=3).map(tuple),
    samples=st.integers(1, 2),
)
def test_every_size_and_grid(size: int, grid: tuple[int, ...], samples: int) -> None:
    memory = memory_of(size, samples)
    assert torch.equal(read_view(memory, spec(size, grid)), reference(memory, grid))


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        (12, (2, 3)),
        (13, (2, 3)),
        (5, (4, 6)),
        (9, (4, 6)),
        (10, (3, 20)),
        (49, (7, 7)),
        (1, (1, 1)),
        (6, ()),
        (7, (2, 2, 3)),
    ],
)
@pytest.mark.parametrize("samples", [1, 3])
def test_named_cases(size: int, grid: tuple[int, ...], samples: int) -> None:
    memory = memory_of(size, samples)
    assert torch.equal(read_view(memory, spec(size, grid)), reference(memory, grid))


def test_one_channel_is_centred_with_the_odd_line_at_bottom_and_right() -> None:
    view = read_view(memory_of(4), spec(4, (3, 5)))[0, :, :, 0]
    expected = torch.tensor([[0, 1, 2, 0, 0], [0, 3, 4, 0, 0], [0, 0, 0, 0, 0]])
    assert torch.equal(view, torch.cat([torch.zeros(3, 1), expected[:, 1:].float()], 1))


@pytest.mark.parametrize("grid", [(), (5,), (3, 4), (2, 3, 2)])
def test_layouts(grid: tuple[int, ...]) -> None:
    size, rank = 30, len(grid) + 2
    memory = memory_of(size, 2)
    plain = reference(memory, grid)
    for batch_axis, channel_axis in itertools.permutations(range(rank), 2):
        view = read_view(memory, spec(size, grid, batch_axis, channel_axis))
        assert torch.equal(view.movedim((batch_axis, channel_axis), (0, rank - 1)), plain)
    for channel_axis in range(rank - 1):
        view = read_view(memory, spec(size, grid, None, channel_axis))
        assert torch.equal(view.movedim(channel_axis, rank - 2), plain[0])


def test_resize_reads_the_map() -> None:
    memory = memory_of(2 * 3 * 4)
    view = read_view(memory, ViewSpec("resize", 24, (2, 3), 4, 0, 1))
    assert view.shape == (1, 4, 2, 3)
    assert view[0, 2, 1, 0] == memory[0, (1 * 3 + 0) * 4 + 2]
    like = torch.zeros(5, 9, 4, 6)
    fitted = fit(view, like, 1, 0)
    assert torch.equal(fitted, F.interpolate(view, size=(4, 6), mode="bilinear", align_corners=False))


def test_fit_returns_a_view_that_fits_untouched() -> None:
    view = torch.randn(1, 2, 4, 6)
    assert fit(view, torch.zeros(3, 8, 4, 6), 1, 0) is view


@pytest.mark.parametrize("batch_axis", [0, 1, None])
def test_fit_resamples_every_layout_alike(batch_axis: int | None) -> None:
    plain = torch.randn(1, 3, 5)  # [1, k, T]
    expected = F.interpolate(plain, size=[8], mode="linear", align_corners=False)
    if batch_axis is None:
        assert torch.equal(fit(plain[0].T, torch.zeros(8, 7), 1, None), expected[0].T)
        return
    view = plain.permute(0, 2, 1).movedim(0, batch_axis)
    like = torch.zeros(2, 8, 7).movedim(0, batch_axis)
    assert torch.equal(fit(view, like, 2, batch_axis), expected.permute(0, 2, 1).movedim(0, batch_axis))


def test_four_dimensions_are_resampled_one_after_the_other() -> None:
    view = torch.randn(1, 2, 4, 3, 5, 6)  # [1, *S, k]
    assert torch.equal(fit(view, torch.zeros(2, 2, 4, 3, 5, 9), 5, 0), view)
    seen = fit(view, torch.zeros(2, 3, 7, 3, 2, 9), 5, 0)
    expected = view.clone()
    for axis, size in ((1, 3), (2, 7), (4, 2)):
        lines = expected.movedim(axis, -1).flatten(0, -2).unsqueeze(0)
        resized = F.interpolate(lines, size=size, mode="linear", align_corners=False)[0]
        expected = resized.unflatten(0, expected.movedim(axis, -1).shape[:-1]).movedim(-1, axis)
    assert seen.shape == (1, 3, 7, 3, 2, 6)
    torch.testing.assert_close(seen, expected)
    cube = view[:, :, :, :, 0]
    flat = fit(view[:, :, :, :, :1], torch.zeros(2, 5, 2, 6, 1, 9), 5, 0)
    torch.testing.assert_close(flat[:, :, :, :, 0], fit(cube, torch.zeros(2, 5, 2, 6, 9), 4, 0))


def test_expand_batch() -> None:
    view = torch.randn(4, 1, 3)
    assert expand_batch(view, torch.zeros(4, 5, 9), 1).shape == (4, 5, 3)
    assert expand_batch(view, torch.zeros(4, 5, 9), None) is view


def test_interleave_gives_every_group_the_memory() -> None:
    x, m, n = torch.randn(2, 6, 4), torch.randn(2, 2, 4), torch.randn(2, 1, 4)
    expected = torch.cat([x[:, :2], m, n, x[:, 2:4], m, n, x[:, 4:], m, n], 1)
    assert torch.equal(interleave(x, [m, n], 3, 1), expected)


def test_batch_mean() -> None:
    memory = torch.randn(3, 5)
    assert torch.equal(batch_mean(memory), memory.mean(0)[None])


@pytest.mark.parametrize(("batch_axis", "channel_axis"), [(0, 1), (0, 3), (1, 3), (3, 0), (1, 0)])
def test_rows_stay_rows_in_every_layout(batch_axis: int, channel_axis: int) -> None:
    """One channel can stand dispatched, samples can't."""
    grid, rows = (3, 2), torch.randn(4, 6)
    for style, memory in (("reshape", rows), ("centred", rows[:, :4])):
        spec = ViewSpec(style, memory.shape[1], grid, 1, batch_axis, channel_axis)  # type: ignore[arg-type]
        shown = read_view(memory, spec)
        for index in range(4):
            one = read_view(memory[index : index + 1], spec)
            assert torch.equal(shown.select(batch_axis, index), one.select(batch_axis, 0))
