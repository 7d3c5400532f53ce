"""The algebra of a site: the layer over memory channels, and the layer widened by them.

    layer([x ; m]; [Wx | Wm], b)  =  layer(x; Wx, b)  +  layer(m; Wm)

Both sides are made from the layer itself, never from a guess about its arguments: a read layer is
the same layer over other channels, and a widened layer is the same layer with another weight.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

AffineLayer = _ConvNd | nn.Linear

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
    return isinstance(layer, _ConvTransposeNd)


def groups_of(layer: nn.Module) -> int:
    """g; 1 for a linear layer."""
    return int(layer.groups) if isinstance(layer, _ConvNd) else 1


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


class _Pointwise(_ConvNd):
    """A convolution of one tap over one group, without padding and bias: a product of two matrices.

    For one sample that takes less time than a convolution does. And oneDNN reads beyond the end of channels-last maps
    of few channels in the backward pass of a strided one (torch 2.13), and memories are such maps.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        steps: Any = (..., *(slice(None, None, stride) for stride in self.stride))
        values, rank = input[steps] if any(stride > 1 for stride in self.stride) else input, len(self.stride)
        if values.shape[0] != 1 or values.dim() != rank + 2:
            return (F.conv1d, F.conv2d, F.conv3d)[rank - 1](values, weight, bias)
        if values.stride(1) == 1 and values.shape[2:].numel() > 1:  # channels-last
            return F.linear(values.movedim(1, -1), weight.flatten(1)).movedim(-1, 1)
        return torch.mm(weight.flatten(1), values[0].flatten(1)).reshape(1, -1, *values.shape[2:])


class PointwiseConv1d(_Pointwise, nn.Conv1d):
    """`nn.Conv1d` with a kernel of 1 and no padding."""


class PointwiseConv2d(_Pointwise, nn.Conv2d):
    """`nn.Conv2d` with a kernel of 1 and no padding."""


class PointwiseConv3d(_Pointwise, nn.Conv3d):
    """`nn.Conv3d` with a kernel of 1 and no padding."""


class FewPlacesConv2d(nn.Conv2d):
    """`nn.Conv2d` over one group, without bias: a product of two matrices where it has as many taps as places to give.

    Convolutions are made for many places. With 7 x 7 taps over 7 x 7 places, as in the last stage of ConvNeXt, their
    backward pass takes several times as long as that of the product of the weight and the input's windows.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, cols = self._places(input)
        if not 1 < rows * cols <= self.kernel_size[0] * self.kernel_size[1]:
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output
        windows = F.unfold(input, self.kernel_size, self.dilation, self.padding, self.stride)  # type: ignore[arg-type]
        if input.stride(1) == 1:  # channels-last; windows are [1, k * taps, places]
            return F.linear(windows[0].t(), weight.flatten(1)).view(1, rows, cols, -1).permute(0, 3, 1, 2)
        return torch.mm(weight.flatten(1), windows[0]).view(1, -1, rows, cols)

    def _places(self, input: Tensor) -> tuple[int, int]:
        """Rows and columns of the output for one sample; none where that is not what is asked for."""
        single = input.dim() == 4 and input.shape[0] == 1
        if torch.compiler.is_compiling() or not single or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return 0, 0
        rows, cols = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                input.shape[2:], self.padding, self.dilation, self.kernel_size, self.stride, strict=True
            )
        )
        return rows, cols


POINTWISE: dict[type[nn.Module], type[AffineLayer]] = {
    nn.Conv1d: PointwiseConv1d,
    nn.Conv2d: PointwiseConv2d,
    nn.Conv3d: PointwiseConv3d,
}


def _is_pointwise(layer: AffineLayer) -> bool:
    return (
        isinstance(layer, _ConvNd)
        and all(size == 1 for size in layer.kernel_size)
        and (layer.padding == "valid" or not any(map(bool, layer.padding)))
    )


def clone_layer(layer: AffineLayer, weight: nn.Parameter, channels: int, *, raw: bool = False) -> AffineLayer:
    """The same layer over `channels` other channels: one group, no bias, no hooks, `weight`.

    Class, kernel, stride, padding, dilation, padding mode and whatever else the layer's own
    `forward` uses come from `layer`; nothing that holds parameters or buffers is shared. With
    `raw`, the class is torch's own, so that `weight` is used as it is.
    """
    kind = torch_kind(layer) if raw else type(layer)
    if _is_pointwise(layer):
        kind = POINTWISE.get(kind, kind)
    elif kind is nn.Conv2d:
        kind = FewPlacesConv2d
    clone = kind.__new__(kind)
    clone.__dict__.update(layer.__dict__)
    for name, value in layer.__dict__.items():
        if isinstance(value, OrderedDict) and "hooks" in name:
            clone.__dict__[name] = OrderedDict()
    for name in ("weight", "bias"):  # what a hook computes, of torch.nn.utils.weight_norm and its like
        clone.__dict__.pop(name, None)
    helpers = {name: child for name, child in layer._modules.items() if child is not None and not _holds_tensors(child)}
    clone.__dict__["_modules"] = {} if raw else helpers
    clone.__dict__["_buffers"] = {}
    clone.__dict__["_parameters"] = {"weight": weight, "bias": None}
    if isinstance(clone, nn.Linear):
        clone.in_features = channels
    else:
        clone.in_channels, clone.groups = channels, 1
    return clone


def read_layer(layer: AffineLayer, channels: int, init: str, *, raw: bool = False) -> AffineLayer:
    """layer(.; Wm): the same layer over `channels` memory channels, without bias, one group.

    Args:
        layer: The site.
        channels: k.
        init: ``"zero"``, or ``"default"``: the part of the layer's own initialisation of its
            widened weight that falls on the memory channels.
        raw: Whether the layer transforms its own weight; Wm is used as it is.
    """
    weight = read_weight(layer, channels, init).to(stored_weight(layer))
    return clone_layer(layer, nn.Parameter(weight.detach()), channels, raw=raw)


def read_weight(layer: AffineLayer, channels: int, init: str) -> Tensor:
    """Wm for k memory channels at `layer`, as `init` says; see `read_layer`."""
    if init == "default":
        return _default_weight(layer, channels)
    return torch.zeros(read_weight_shape(layer, channels))


def _holds_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _default_weight(layer: AffineLayer, channels: int) -> Tensor:
    base = torch.zeros(_weight_shape(layer))
    read = torch.zeros(read_weight_shape(layer, channels))
    wide = widen_weight(layer, base, [read])
    fresh = clone_layer(layer, nn.Parameter(wide), wide.shape[0 if is_transposed(layer) else 1], raw=True)
    fresh.reset_parameters()
    return narrow_weight(layer, fresh.weight.detach(), [channels])[1][0]


def read_bound(layer: AffineLayer, channels: int, init: str) -> float:
    """The largest absolute value that Wm for k memory channels can be made with, as `init` says.

    torch draws the weight of a layer from U(-b, b) with b = 1 / sqrt(size of dimension 1 * size of the kernel).
    """
    if init != "default":
        return 0.0
    _, inner, *kernel = _weight_shape(layer)
    return 1 / math.sqrt((inner + (0 if is_transposed(layer) else channels)) * math.prod(kernel))


def _weight_shape(layer: AffineLayer) -> tuple[int, ...]:
    """Shape of Wx."""
    if isinstance(layer, nn.Linear):
        return (layer.out_features, layer.in_features)
    outer, inner = layer.out_channels, layer.in_channels
    shape = (inner, outer // layer.groups) if is_transposed(layer) else (outer, inner // layer.groups)
    return (*shape, *layer.kernel_size)


def widen_weight(layer: AffineLayer, weight: Tensor, read_weights: list[Tensor]) -> Tensor:
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


def narrow_weight(layer: AffineLayer, wide: Tensor, channels: list[int]) -> tuple[Tensor, list[Tensor]]:
    """The inverse of `widen_weight`: Wx and one Wm for each of the k_i in `channels`.

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
        weight = widen_weight(layer, layer.weight, [read.weight for read in reads])
        return torch.as_tensor(torch.func.functional_call(layer, {"weight": weight}, args, kwargs))


_FRESH = frozenset(
    {"ConvolutionBackward0", "AddmmBackward0", "MmBackward0", "LinearBackward0", "UnsafeViewBackward0", "AddBackward0"}
)
"""Backward nodes of a convolution, a linear layer, and a term added before: none saves its output."""


def accumulate(output: Tensor, term: Tensor) -> Tensor:
    """Output + term, in place where that is legal: it keeps the memory layout, and so bit identity.

    A convolution or linear layer saves its input for the backward pass, not its output, so its
    fresh output may be overwritten. A view (the output under full backward hooks) may not, nor may
    what a forward hook made of the output, nor an output that is not batched under `torch.vmap`
    while the term is.
    """
    if torch.compiler.is_compiling() or not _may_overwrite(output, term):
        return torch.add(output, term.to(output.dtype))
    return output.add_(_laid_out(term, output))


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _laid_out(term: Tensor, output: Tensor) -> Tensor:
    """`term` with its channels side by side in memory if those of `output` are, or else not.

    Most layers see to that. What they lay out in another way is copied, one sample of it: to add it as it is to many
    samples takes several times as long.
    """
    if term.dim() != output.dim() or term.dim() not in _CHANNELS_LAST or 1 in term.shape[1:]:
        return term
    last = output.stride(1) == 1
    if (term.stride(1) == 1) == last:
        return term
    return term.contiguous(memory_format=_CHANNELS_LAST[term.dim()] if last else torch.contiguous_format)


def _may_overwrite(output: Tensor, term: Tensor) -> bool:
    if output.grad_fn is not None and output.grad_fn.name() not in _FRESH:
        return False
    if torch._C._functorch.is_batchedtensor(term) and not torch._C._functorch.is_batchedtensor(output):
        return False
    return not output._is_view() and _fits_into(term.shape, output.shape)


def _fits_into(term: torch.Size, output: torch.Size) -> bool:
    """Whether a term broadcasts to an output; torch.broadcast_shapes takes longer than the sum."""
    if len(term) > len(output):
        return False
    return all(one in (1, other) for one, other in zip(reversed(term), reversed(output), strict=False))
