"""How the exporter writes our operators as ONNX."""

from collections.abc import Callable
from typing import Any

from aimgraph.runtime.onnx_ops import ADD_TERM, FIT_TO


def translations() -> dict[Any, Callable[..., Any]]:
    """Operator -> what the exporter writes for it."""
    from onnxscript import opset18

    op: Any = opset18

    def add(output: Any, term: Any) -> Any:
        return op.Add(output, op.CastLike(term, output))

    def resize(view: Any, like: Any, channel_axis: int, batch_axis: int | None = None, site: str = "") -> Any:
        outer = [channel_axis] if batch_axis is None else [batch_axis, channel_axis]
        return _resize(op, op.CastLike(view, like), like, outer)

    return {ADD_TERM: add, FIT_TO: resize}


def _resize(op: Any, view: Any, like: Any, outer: list[int]) -> Any:
    """`view` resized linearly to the grid of `like`.

    Args:
        op: The ONNX opset.
        view: Features, of one sample or a batch.
        like: Features of the same rank.
        outer: The axes of batch and channels; all others are the grid.
    """
    rank = len(like.shape)
    grid = [axis for axis in range(rank) if axis not in outer]
    if not grid:
        return view
    order = [*outer, *grid]

    def shape(*parts: Any) -> Any:
        """Resize takes [B, C, H, W] or [B, C, D, H, W]: ones stand in for what is missing."""
        missing = [1] * (2 - len(outer)), [1] * max(0, 2 - len(grid))
        ones = [[op.Constant(value_ints=axes)] if axes else [] for axes in missing]
        return op.Concat(*ones[0], parts[0], *ones[1], parts[1], axis=0)

    wanted = op.Gather(op.Shape(like), op.Constant(value_ints=grid))
    own = op.Gather(op.Shape(view), op.Constant(value_ints=outer))
    present = op.Gather(op.Shape(view), op.Constant(value_ints=grid))
    features, sizes = op.Reshape(op.Transpose(view, perm=order), shape(own, present)), shape(own, wanted)
    resized = op.Resize(features, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    back = op.Reshape(resized, op.Concat(own, wanted, axis=0))
    return op.Transpose(back, perm=[order.index(axis) for axis in range(rank)])
