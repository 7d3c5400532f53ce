"""bfloat16 autocast on processors without kernels for it.

There torch's convolutions and matrix products of that type take many times as long as those of float32, and whole
networks would be compared for minutes.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from aimgraph.torch_private import TorchDispatchMode, has_bfloat16_kernels, tree_leaves, tree_map_only

_aten = torch.ops.aten
_PRODUCTS = {_aten.convolution, _aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm}


class Rounded(TorchDispatchMode):
    """Convolutions and matrix products of bfloat16 tensors are computed in float32, and rounded.

    Which types operations are given, and what they refuse, stays as it is.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        given = args, kwargs or {}
        tensors = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        ours = func.overloadpacket in _PRODUCTS and all(one.dtype is torch.bfloat16 for one in tensors)
        if not ours:
            return func(*given[0], **given[1])
        wide: Any = tree_map_only(Tensor, Tensor.float, given)
        return func(*wide[0], **wide[1]).to(torch.bfloat16)


@contextmanager
def autocast() -> Iterator[None]:
    """bfloat16 autocast on the CPU, its products by way of float32 where this processor has no kernels for them."""
    with torch.autocast("cpu", torch.bfloat16), nullcontext() if has_bfloat16_kernels() else Rounded():  # type: ignore[no-untyped-call]
        yield
