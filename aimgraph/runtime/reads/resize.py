"""Resample the map: every position sees what stands at its place."""

from aimgraph.runtime.reads.reshape import reshape
from aimgraph.runtime.reads.view import ViewSpec
from aimgraph.runtime.specs import PARTS, ReadSpec


def resize(spec: ReadSpec) -> ViewSpec:
    """The (rows, cols) map on a 2-D grid, k = channels; as `reshape` on other grids, and of (N,)."""
    if len(spec.grid) != 2 or len(spec.shape) != 3:
        return reshape(spec)
    return ViewSpec("resize", spec.size, spec.shape[:2], spec.shape[2])


PARTS["read"]["resize"] = resize
