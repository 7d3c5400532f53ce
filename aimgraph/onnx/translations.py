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
        rank = len(view.shape)
        outer = [channel_axis] if batch_axis is None else [batch_axis, channel_axis]
        grid = [axis for axis in range(rank) if axis not in outer]
        view = op.CastLike(view, like)
        if not grid:
            return view
        order = [*outer, *grid]
        moved = op.Transpose(view, perm=order)
        wanted = op.Gather(op.Shape(like), op.Constant(value_ints=grid))
        own = op.Gather(op.Shape(view), op.Constant(value_ints=outer))
        missing = [1] * (2 - len(outer)), [1] * max(0, 2 - len(grid))  # Resize takes [B, C, H, W] or [B, C, D, H, W]
        sizes = [op.Constant(value_ints=missing[0])] if missing[0] else []
        sizes += [own, *([op.Constant(value_ints=missing[1])] if missing[1] else []), wanted]
        full = op.Concat(*sizes, axis=0)
        before = op.Concat(
            *([op.Constant(value_ints=missing[0])] if missing[0] else []),
            own,
            *([op.Constant(value_ints=missing[1])] if missing[1] else []),
            op.Gather(op.Shape(view), op.Constant(value_ints=grid)),
            axis=0,
        )
        shaped = op.Resize(
            op.Reshape(moved, before),
            None,
            None,
            full,
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )
        back = op.Reshape(shaped, op.Concat(own, wanted, axis=0))
        return op.Transpose(back, perm=[order.index(axis) for axis in range(rank)])

    return {ADD_TERM: add, FIT_TO: resize}
