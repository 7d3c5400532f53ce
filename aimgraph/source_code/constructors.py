"""How a module of torch is made: the call of its class that gives one like it, as a person writes it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from aimgraph.errors import PlanError
from aimgraph.runtime import plain_convs
from aimgraph.source_code import plain
from aimgraph.source_code.literals import constant


def is_of_torch(module: nn.Module) -> bool:
    """Whether a module's class is torch's own, and not one that torch has made of another, as parametrizations do."""
    return type(module).__module__.startswith("torch.nn.") and not hasattr(module, "parametrizations")


def is_kept(module: nn.Module) -> bool:
    """Whether a module's class is torch's own, or one that a source has a copy of."""
    return is_of_torch(module) or type(module).__module__ in (plain.__name__, plain_convs.__name__)


def stays_call(module: nn.Module) -> bool:
    """Whether a call of a module stands in a source as it is: all of it is made by calls of such classes."""
    return all(map(is_kept, module.modules()))


def is_list(module: nn.Module) -> bool:
    """Whether a module does nothing but hold others, or call them one after the other."""
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def constructor(module: nn.Module) -> str:
    """``nn.Conv2d(3, 8, 3, padding=1)`` for a module of torch, or of a class that a source has a copy of.

    Arguments that have their default value are left out; those without a default stand by position.

    Raises:
        PlanError: An argument can't be told from the module.
    """
    kind = type(module)
    given = _arguments(module)
    text = [value if name == "" else f"{name}={value}" for name, value in given]
    place = "nn." if is_of_torch(module) else ""
    return f"{place}{kind.__name__}({', '.join(text)})"


def _arguments(module: nn.Module) -> list[tuple[str, str]]:
    """Name, empty for one by position, and text of each argument that has to be given."""
    found: list[tuple[str, str]] = []
    for parameter in _parameters(type(module)):
        value = _value(module, parameter.name)
        if parameter.default is parameter.empty:
            found.append(("", _text(value)))
        elif not _is_default(module, parameter, value):
            found.append((parameter.name, _text(value)))
    return found


def _parameters(kind: type[nn.Module]) -> list[inspect.Parameter]:
    """The parameters of a class's constructor that say what it makes."""
    of_class = _SIGNATURES.get(kind, kind.__init__)
    given = list(inspect.signature(of_class).parameters.values())[1:]
    return [one for one in given if one.name not in _OF_PLACE and one.kind not in _ANY_NUMBER]


def _recurrent(
    self: Any,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    bidirectional: bool = False,
    proj_size: int = 0,
    nonlinearity: str = "tanh",
) -> None:
    """The arguments of `nn.RNN`, `nn.LSTM` and `nn.GRU`."""


_SIGNATURES: Mapping[type, Callable[..., Any]] = dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU), _recurrent)
_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_OF_PLACE = frozenset({"device", "dtype", "_weight", "_freeze", "min_value", "max_value", "size_average", "reduce"})
"""Arguments that say where a module is, or that others replace."""

_OF_WINDOWS = frozenset({"kernel_size", "stride", "padding", "dilation", "output_padding"})
"""Arguments of which one number stands for as many as there are dimensions."""


def _value(module: nn.Module, name: str) -> Any:
    told = _TOLD.get(type(module), {})
    if name in told:
        return told[name](module)
    if name == "bias":
        own = getattr(module, "bias", None)
        return own if isinstance(own, bool) else own is not None
    if not hasattr(module, name):
        if name == "nonlinearity":
            return "tanh"
        raise PlanError(f"{type(module).__name__}: with which {name}= it was made can't be told")
    value = getattr(module, name)
    if isinstance(value, tuple) and name in _OF_WINDOWS:
        return value[0] if len(set(value)) == 1 else value
    return value[0] if name == "normalized_shape" and len(value) == 1 else value


def _activation(layer: Any) -> Any:
    known = {F.relu: "relu", F.gelu: "gelu"}
    if layer.activation not in known:
        raise PlanError(f"{type(layer).__name__}: its activation is {layer.activation}, and can't be written")
    return known[layer.activation]


_LAYER: dict[str, Callable[[Any], Any]] = {
    "d_model": lambda layer: layer.self_attn.embed_dim,
    "nhead": lambda layer: layer.self_attn.num_heads,
    "dim_feedforward": lambda layer: layer.linear1.out_features,
    "dropout": lambda layer: layer.dropout.p,
    "activation": _activation,
    "layer_norm_eps": lambda layer: layer.norm1.eps,
    "batch_first": lambda layer: layer.self_attn.batch_first,
    "bias": lambda layer: layer.linear1.bias is not None,
}

_TOLD: dict[type, dict[str, Callable[[Any], Any]]] = {
    nn.MultiheadAttention: {
        "bias": lambda module: module.in_proj_bias is not None,
        "add_bias_kv": lambda module: module.bias_k is not None,
    },
    nn.TransformerEncoderLayer: _LAYER,
    nn.TransformerDecoderLayer: _LAYER,
    nn.TransformerEncoder: {
        "encoder_layer": lambda module: module.layers[0],
        "enable_nested_tensor": lambda module: module.enable_nested_tensor,
    },
    nn.TransformerDecoder: {"decoder_layer": lambda module: module.layers[0]},
    nn.Transformer: {
        **{name: lambda module, name=name: _LAYER[name](module.encoder.layers[0]) for name in _LAYER},  # type: ignore[misc]
        "num_encoder_layers": lambda module: len(module.encoder.layers),
        "num_decoder_layers": lambda module: len(module.decoder.layers),
        "custom_encoder": lambda module: None,
        "custom_decoder": lambda module: None,
        "norm_first": lambda module: module.encoder.layers[0].norm_first,
    },
}


def _is_default(module: nn.Module, parameter: inspect.Parameter, value: Any) -> bool:
    """Whether a module is the same without an argument."""
    name, default = parameter.name, parameter.default
    if name == "stride" and default is None:
        return bool(value == _value(module, "kernel_size"))
    if name in ("kdim", "vdim"):
        return bool(value == module.embed_dim)
    if name == "bias" and False in (getattr(module, "elementwise_affine", True), getattr(module, "affine", True)):
        return True
    if isinstance(value, Tensor):
        return False
    if name == "activation":
        return bool(value == "relu")
    return bool(value == default) and isinstance(value, bool) == isinstance(default, bool)


def _text(value: Any) -> str:
    if isinstance(value, nn.Module):
        return constructor(value)
    if isinstance(value, Tensor):
        return f"torch.empty({', '.join(map(str, value.shape))})"
    if isinstance(value, tuple | list):
        items = ", ".join(map(_text, value))
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' * (len(value) == 1)})"
    return constant(value)
