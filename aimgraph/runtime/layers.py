"""The algebra of a site: the layer over memory channels, and the layer widened by them.

    layer([x ; m]; [Wx | Wm], b)  =  layer(x; Wx, b)  +  layer(m; Wm)

Both sides are made from the layer itself, never from a guess about its arguments: a read layer is
the same layer over other channels, and a widened layer is the same layer with another weight.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.torch_private import ConvNd, ConvTransposeNd

AffineLayer = ConvNd | nn.Linear


TORCH_KINDS: tuple[type[AffineLayer], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


FUNCTIONS: tuple[Callable[..., Any], ...] = (
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    F.linear,
)
"""The functions whose calls can read, affine in their input, whatever their weight; as `TORCH_KINDS` call them."""


def parameter_names(func: Any) -> tuple[str, ...]:
    """The parameters of one of `FUNCTIONS`, in order: builtins have no signature."""
    if func in (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d):
        return ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
    return ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def given_to(func: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of one of `FUNCTIONS`, by name."""
    return dict(zip(parameter_names(func), args, strict=False)) | dict(kwargs)


def call_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Of such arguments, those that hold for the memory's term as well: stride, padding and the like."""
    return {name: value for name, value in given.items() if name not in ("input", "weight", "bias", "groups")}


def torch_kind(layer: AffineLayer) -> type[AffineLayer]:
    """The torch class that `layer` descends from."""
    return next(kind for kind in TORCH_KINDS if isinstance(layer, kind))


def is_transposed(layer: nn.Module) -> bool:
    """Whether `layer` is a transposed convolution, whose weight is [C, O / g, ...]."""
    return isinstance(layer, ConvTransposeNd)


def groups_of(layer: nn.Module) -> int:
    """g; 1 for a linear layer."""
    return int(layer.groups) if isinstance(layer, ConvNd) else 1


def read_weight_shape(layer: AffineLayer, channels: int) -> tuple[int, ...]:
    """Shape of Wm: [O, k, ...], or [k, O, ...] for a transposed convolution."""
    if isinstance(layer, nn.Linear):
        return (layer.out_features, channels)
    outer = (channels, layer.out_channels) if is_transposed(layer) else (layer.out_channels, channels)
    return (*outer, *layer.kernel_size)


def stored_weight(layer: AffineLayer) -> Tensor:
    """The tensor that `layer` keeps its weight in, for its dtype and device.

    Asking a parametrised layer for its weight computes it, and may change buffers on the way.
    """
    weight = layer._parameters.get("weight")
    return weight if weight is not None else next(layer.parameters())


def weight_shape(layer: AffineLayer) -> tuple[int, ...]:
    """Shape of Wx."""
    if isinstance(layer, nn.Linear):
        return (layer.out_features, layer.in_features)
    outer, inner = layer.out_channels, layer.in_channels
    shape = (inner, outer // layer.groups) if is_transposed(layer) else (outer, inner // layer.groups)
    return (*shape, *layer.kernel_size)


def concat_weight(layer: AffineLayer, weight: Tensor, read_weights: list[Tensor]) -> Tensor:
    """[Wx | Wm]: the weight of the layer over [x_g ; m] in every group g.

    Args:
        layer: The site; only its kind and groups are used.
        weight: Wx, [O, C / g, ...], or [C, O / g, ...] for a transposed convolution.
        read_weights: One Wm per memory, [O, k_i, ...], or [k_i, O, ...].

    Returns:
        [O, C / g + k, ...], or [C + g * k, O / g, ...], with k = sum(k_i).
    """
    if not is_transposed(layer):
        return torch.cat([weight, *read_weights], dim=1)
    groups = groups_of(layer)
    rows = []
    for group, inputs in enumerate(weight.chunk(groups, 0)):
        rows += [inputs, *(read.chunk(groups, 1)[group] for read in read_weights)]
    return torch.cat(rows, dim=0)


def split_weight(layer: AffineLayer, wide: Tensor, channels: list[int]) -> tuple[Tensor, list[Tensor]]:
    """The inverse of `concat_weight`: Wx and one Wm for each of the k_i in `channels`.

    Args:
        layer: The site; only its kind and groups are used.
        wide: [Wx | Wm].
        channels: k_i of each memory.
    """
    if not is_transposed(layer):
        parts = wide.split([wide.shape[1] - sum(channels), *channels], dim=1)
        return parts[0].contiguous(), [part.contiguous() for part in parts[1:]]
    groups = groups_of(layer)
    inputs = wide.shape[0] // groups - sum(channels)
    split = [block.split([inputs, *channels], dim=0) for block in wide.chunk(groups, 0)]
    base = torch.cat([blocks[0] for blocks in split], dim=0)
    reads = [torch.cat([blocks[i] for blocks in split], dim=1) for i in range(1, len(channels) + 1)]
    return base, reads


class Widened(nn.Module):
    """A layer over [x ; m] that concatenates its weights on the fly: the form that passes rewrite.

    It holds the layer and its read layers without owning them, so no widened weight is allocated
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


def is_layer(module: nn.Module) -> bool:
    """Whether `module` is a convolution or a linear layer, of whatever subclass."""
    return isinstance(module, TORCH_KINDS)


def stand_in(function: Callable[..., Any], weight: tuple[int, ...], groups: int) -> AffineLayer:
    """A layer of torch's that calls `function` with a weight of that shape; it allocates nothing.

    Args:
        function: One of `FUNCTIONS`.
        weight: Shape of the weight: [O, C], [O, C / g, ...], or [C, O / g, ...] for a transposed one.
        groups: g.
    """
    if function is F.linear:
        return nn.Linear(weight[1], weight[0], bias=False, device="meta")
    kind = _KINDS[function]
    transposed = issubclass(kind, ConvTransposeNd)
    first, second = (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
    layer: AffineLayer = kind(first, second, weight[2:], groups=groups, bias=False, device="meta")
    return layer


_KINDS: dict[Callable[..., Any], Any] = dict(zip(FUNCTIONS, TORCH_KINDS, strict=True))
