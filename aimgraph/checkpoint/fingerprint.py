"""The fingerprint of a base: its layers and their shapes, and a sample of its values."""

from collections.abc import Mapping

from torch import Tensor

from aimgraph.checkpoint.spec import LayerEntry
from aimgraph.checkpoint.tensor_files import sha256_of
from aimgraph.distance import dense
from aimgraph.inputs.as_json import dtype_name

SAMPLED = 256
"""Values of a tensor that its digest is made of, evenly spread."""


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, LayerEntry]:
    """Key of the state dict -> shape, dtype and a digest of some values."""
    return {
        key: LayerEntry(dtype=dtype_name(tensor), shape=tuple(tensor.shape), sample=_sample(tensor))
        for key, tensor in tensors.items()
    }


def _sample(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "0" * 16
    flat = dense(tensor.detach()).reshape(-1)
    return sha256_of(flat[:: max(1, flat.numel() // SAMPLED)].cpu())[:16]


def layers_apart(written: Mapping[str, LayerEntry], present: Mapping[str, LayerEntry]) -> list[str]:
    """What differs in layers, shapes and dtypes.

    Args:
        written: Of the base that the checkpoint was made with.
        present: Of the base at hand.

    Returns:
        A line for each layer that differs, in the order of the network.
    """
    layers: dict[str, list[str]] = {}
    for key in dict.fromkeys([*written, *present]):
        told = layers.setdefault(key.rpartition(".")[0], [])
        if line := _apart(key, written, present):
            told.append(line)
    return [f"{layer or 'the model itself'}: {', '.join(told)}" for layer, told in layers.items() if told]


def _apart(key: str, written: Mapping[str, LayerEntry], present: Mapping[str, LayerEntry]) -> str:
    name = key.rpartition(".")[2]
    if key not in present:
        return f"{name} {list(written[key].shape)} is only in the checkpoint's base"
    if key not in written:
        return f"{name} {list(present[key].shape)} is only in this one"
    was, here = written[key], present[key]
    if was.shape != here.shape:
        return f"{name} is {list(was.shape)} in the checkpoint's base and {list(here.shape)} in this one"
    if was.dtype != here.dtype:
        return f"{name} is {was.dtype} in the checkpoint's base and {here.dtype} in this one"
    return ""


def values_apart(written: Mapping[str, LayerEntry], present: Mapping[str, LayerEntry]) -> list[str]:
    """Keys whose values differ in the sample."""
    return [key for key, entry in written.items() if key in present and present[key].sample != entry.sample]
