"""The algebra of a site: the layer over memory channels, and the layer over both.

    layer([x ; m]; [Wx | Wm], b)  =  layer(x; Wx, b)  +  layer(m; Wm)

Both sides are made from the layer itself, never from a guess about its arguments: a read layer is
the same layer over other channels, and a layer in concat form is the same layer with another weight.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.runtime.layer_kinds import FUNCTIONS, AffineLayer, is_layer, kind_of


def given_to(func: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of one of `FUNCTIONS`, by name."""
    return dict(zip(FUNCTIONS[func].arguments, args, strict=False)) | dict(kwargs)


def call_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of such arguments, those that hold for the memory's term as well: stride, padding and the like."""
    return {name: value for name, value in given.items() if name not in ("input", "weight", "bias", "groups")}


def layer_at(root: nn.Module, path: str) -> AffineLayer:
    """The layer at `path`."""
    layer = root.get_submodule(path)
    assert is_layer(layer)
    return layer


def groups_of(layer: nn.Module) -> int:
    """g; 1 for a linear layer."""
    return kind_of(layer).groups(layer)


def read_weight_shape(layer: nn.Module, channels: int) -> tuple[int, ...]:
    """Shape of Wm: [O, k, *K], or [k, O, *K] for a kind with `in_axis` 0."""
    kind = kind_of(layer)
    outputs = kind.channels(layer)[1]
    return (*((outputs, channels) if kind.in_axis else (channels, outputs)), *kind.kernel(layer))


def stored_weight(layer: AffineLayer) -> Tensor:
    """The tensor that `layer` keeps its weight in, for its dtype and device.

    Asking a parametrised layer for its weight computes it, and may change buffers on the way.
    """
    weight = layer._parameters.get("weight")
    return weight if weight is not None else next(layer.parameters())


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Shape of Wx: [O, C / g, *K], or [C, O / g, *K] for a kind with `in_axis` 0."""
    kind = kind_of(layer)
    sizes = kind.channels(layer)
    return (sizes[kind.in_axis], sizes[1 - kind.in_axis] // kind.groups(layer), *kind.kernel(layer))


def replace_weight(layer: AffineLayer, weight: Tensor, channels: int) -> None:
    """Give a layer another weight, for `channels` more input channels in every group; fewer, if negative."""
    kind, groups = kind_of(layer), groups_of(layer)
    kind.set_inputs(layer, kind.channels(layer)[0] + groups * channels, groups)
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)


def concat_weight(layer: nn.Module, weight: Tensor, read_weights: list[Tensor]) -> Tensor:
    """[Wx | Wm]: the weight of the layer over [x_g ; m] in every group g.

    Args:
        layer: The site; only its kind and groups are used.
        weight: Wx, [O, C / g, *K], or [C, O / g, *K] for a kind with `in_axis` 0.
        read_weights: One Wm per memory, [O, k_i, *K], or [k_i, O, *K].

    Returns:
        [O, C / g + k, *K], or [C + g * k, O / g, *K], with k = sum(k_i).
    """
    if kind_of(layer).in_axis == 1:
        return torch.cat([weight, *read_weights], dim=1)
    groups = groups_of(layer)
    rows = []
    for group, inputs in enumerate(weight.chunk(groups, 0)):
        rows += [inputs, *(read.chunk(groups, 1)[group] for read in read_weights)]
    return torch.cat(rows, dim=0)


def split_weight(layer: nn.Module, wide: Tensor, channels: list[int]) -> tuple[Tensor, list[Tensor]]:
    """The inverse of `concat_weight`: Wx and one Wm for each of the k_i in `channels`.

    Args:
        layer: The site; only its kind and groups are used.
        wide: [Wx | Wm].
        channels: k_i of each memory.
    """
    if kind_of(layer).in_axis == 1:
        parts = wide.split([wide.shape[1] - sum(channels), *channels], dim=1)
        return parts[0].contiguous(), [part.contiguous() for part in parts[1:]]
    groups = groups_of(layer)
    inputs = wide.shape[0] // groups - sum(channels)
    split = [block.split([inputs, *channels], dim=0) for block in wide.chunk(groups, 0)]
    base = torch.cat([blocks[0] for blocks in split], dim=0)
    reads = [torch.cat([blocks[i] for blocks in split], dim=1) for i in range(1, len(channels) + 1)]
    return base, reads


class ConcatLayer(nn.Module):
    """A layer over [x ; m] that concatenates its weights on the fly: the form that passes rewrite.

    It holds the layer and its read layers without owning them, so no wider weight is allocated
    and no parameter changes its name.

    Args:
        layer: The site.
        reads: Its read layers, in the order of the memories.
    """

    def __init__(self, layer: AffineLayer, reads: list[AffineLayer]) -> None:
        super().__init__()
        self.aim_borrowed = (layer, tuple(reads))

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """The layer over [x_g ; m] in every group; arguments as the layer's own."""
        layer, reads = self.aim_borrowed
        weight = concat_weight(layer, layer.weight, [read.weight for read in reads])
        return torch.as_tensor(torch.func.functional_call(layer, {"weight": weight}, args, kwargs))
