"""Functions and classes that a source has copies of, where it uses them."""

import inspect
import re
from collections.abc import Iterator

from aimgraph.runtime import plain_convs
from aimgraph.runtime.function_read import group_batch
from aimgraph.runtime.reads.view import batch_mean, interleave
from aimgraph.source_code import plain

FUNCTIONS = {one.__name__: one for one in (plain.fit, plain.expand_batch, group_batch, interleave, batch_mean)}

CLASSES: dict[str, tuple[type, ...]] = {
    "Carry": (plain.Carry,),
    "FewPlacesConv2d": (plain_convs.FewPlacesConv2d,),
    "PointwiseConv1d": (plain_convs.Pointwise, plain_convs.PointwiseConv1d),
    "PointwiseConv2d": (plain_convs.Pointwise, plain_convs.PointwiseConv2d),
    "PointwiseConv3d": (plain_convs.Pointwise, plain_convs.PointwiseConv3d),
}
"""Name -> the class, and before it those that it needs."""

NAMES = frozenset({*FUNCTIONS, *CLASSES, "Pointwise"})


def copies(text: str) -> Iterator[str]:
    """The definitions that a text uses, those that others need first."""
    used = [CLASSES.get(name) or (FUNCTIONS[name],) for name in (*FUNCTIONS, *CLASSES) if calls(text, name)]
    for one in dict.fromkeys(part for parts in used for part in parts):
        yield re.sub(r"  # type: ignore\S*", "", inspect.getsource(one)).rstrip("\n")


def calls(text: str, name: str) -> bool:
    """Whether a text calls something by its bare name."""
    return re.search(rf"(?<![\w.\"]){name}\(", text) is not None
