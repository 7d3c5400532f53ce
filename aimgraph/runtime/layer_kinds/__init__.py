"""The kinds of layers that can read a memory, one file each, and what is asked of them."""

from aimgraph.runtime.layer_kinds import conv as conv
from aimgraph.runtime.layer_kinds import conv_transpose as conv_transpose
from aimgraph.runtime.layer_kinds import linear as linear
from aimgraph.runtime.layer_kinds.kind import (
    FUNCTIONS,
    AffineLayer,
    LayerKind,
    function_name,
    is_layer,
    kind_of,
    kind_of_class,
    register_layer_kind,
)

__all__ = (
    "FUNCTIONS",
    "AffineLayer",
    "LayerKind",
    "function_name",
    "is_layer",
    "kind_of",
    "kind_of_class",
    "register_layer_kind",
)
