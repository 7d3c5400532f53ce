"""What is asked of a layer that can read a memory, and which kinds of such layers there are."""

import math
from collections.abc import Callable
from typing import Any, TypeGuard

from torch import nn

from aimgraph.errors import ConfigError
from aimgraph.torch_private import operators_of


class AffineLayer(nn.Module):
    """A layer of a registered kind, for annotations only: no layer descends from it.

    Attributes:
        weight: Wx, laid out as its `LayerKind` says.
        bias: One number for each output channel, [O].
    """

    weight: nn.Parameter
    bias: nn.Parameter | None


class LayerKind:
    """A kind of layers that are affine in their input channels; a subclass says what is not as in a linear layer.

    A layer of C input and O output channels takes [..., C, *S] and gives [..., O, *S'], where S has as many
    dimensions as the kernel K, none for a linear layer. Its parameter ``weight`` is [O, C / g, *K], or [C, O / g, *K]
    if `in_axis` is 0, with g groups; its parameter ``bias``, [O] or None, is added to each position of the output.
    Its forward takes C from its input: in concat form it is given further channels and a weight that has them.

    Args:
        layer: The class of the layers. Its subclasses are of the same kind, unless they have one of their own.
        function: The function of `torch.nn.functional` that does the same, whose calls can then read, too.

    Attributes:
        in_axis: Dimension of the weight that holds the input channels, 1 or 0.
        methods: Methods that compute the output. A subclass that replaces one is watched while it runs, to see whether
            it is still affine.
        arguments: Parameters of `function`, in order: builtins have no signature.
    """

    in_axis: int = 1
    methods: tuple[str, ...] = ("forward",)
    arguments: tuple[str, ...] = ("input", "weight", "bias")

    def __init__(self, layer: type[nn.Module], function: Callable[..., Any] | None = None) -> None:
        self.layer, self.function = layer, function

    def channels(self, layer: Any) -> tuple[int, int]:
        """(C, O)."""
        return layer.in_features, layer.out_features

    def set_inputs(self, layer: Any, channels: int, groups: int) -> None:
        """Note on a layer whose weight is replaced that it has other input channels and groups."""
        layer.in_features = channels

    def groups(self, layer: Any) -> int:
        """The number of groups, g."""
        return 1

    def kernel(self, layer: Any) -> tuple[int, ...]:
        """The size of the kernel, K; () for a layer that sees one position at a time."""
        return ()

    def places(self, layer: Any, grid: tuple[int, ...], output: tuple[int, ...]) -> int:
        """Positions of a sample at which the kernel is applied.

        Args:
            layer: The layer.
            grid: S.
            output: Shape of the whole output.
        """
        return math.prod(grid)

    def probe(self, layer: Any) -> tuple[int, ...]:
        """Shape of a small input that the layer runs on."""
        return 2, self.channels(layer)[0]

    def read_class(self, layer: Any, *, raw: bool) -> type[nn.Module]:
        """Class of the layer over memory channels: one group, no bias, otherwise with the attributes of `layer`.

        Args:
            layer: The layer.
            raw: Whether `layer` transforms its weight before use, which its read layer doesn't.
        """
        return self.layer if raw else type(layer)

    def draw(self, layer: Any) -> None:
        """Give a layer without bias the weight that a new one has."""
        layer.reset_parameters()

    def sizes(self, weight: tuple[int, ...], groups: int) -> tuple[int, int]:
        """(C, O) of a weight of that shape."""
        both = weight[0], weight[1] * groups
        return both[self.in_axis], both[1 - self.in_axis]

    def stand_in(self, weight: tuple[int, ...], groups: int) -> nn.Module:
        """A layer without values that calls `function` with a weight of that shape."""
        return self.layer(*self.sizes(weight, groups), bias=False, device="meta")


FUNCTIONS: dict[Callable[..., Any], LayerKind] = {}
"""The functions whose calls can read, affine in their input, whatever their weight; each with its kind of layers.

Those of torch stand with the operators that an exported program calls in their place.
"""


def function_name(function: Callable[..., Any]) -> str:
    """What one of `FUNCTIONS` is called in `torch.nn.functional`: an operator's name tells its overload, too."""
    return function.__name__.partition(".")[0]


_KINDS: dict[type, LayerKind] = {}


def register_layer_kind(kind: LayerKind) -> None:
    """Let layers of a kind, and calls of its function, read memories in every transform from now on.

    Anybody can register a kind for layers of their own. A later one for the same class takes the place of an earlier
    one. Models that were transformed before are not affected.

    Raises:
        ConfigError: It is no kind, or not one of modules.
    """
    if not isinstance(kind, LayerKind) or not (isinstance(kind.layer, type) and issubclass(kind.layer, nn.Module)):
        raise ConfigError(
            f"register_layer_kind takes LayerKind(layer_class), of a torch.nn.Module class; this is {kind!r}"
        )
    _KINDS[kind.layer] = kind
    if kind.function is not None:
        FUNCTIONS.update(dict.fromkeys((kind.function, *operators_of(kind.function)), kind))


def is_layer(module: object) -> TypeGuard[AffineLayer]:
    """Whether `module` is a layer of a registered kind, of whatever subclass."""
    return any(base in _KINDS for base in type(module).__mro__)


def kind_of(layer: nn.Module) -> LayerKind:
    """The kind of a layer: that of the nearest of its classes that has one.

    Raises:
        TypeError: None has.
    """
    return kind_of_class(type(layer))


def kind_of_class(made: type[nn.Module]) -> LayerKind:
    """The same for a class of layers."""
    for base in made.__mro__:
        if base in _KINDS:
            return _KINDS[base]
    raise TypeError(f"no layer kind is registered for {made.__name__}")
