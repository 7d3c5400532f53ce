"""The fingerprint of a base: its layers and their shapes, and a sample of its values."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from aimgraph.checkpoint.spec import LayerEntry

SAMPLED = 256
"""Values of a tensor that its digest is made of, evenly spread."""


def fingerprint(tensors: Mapping[str, Tensor]) -> dict[str, LayerEntry]:
    """Key of the state dict -> shape, dtype and a digest of some values."""
    return {
        key: LayerEntry(
            dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape), sample=_sample(tensor)
        )
        for key, tensor in tensors.items()
    }


def _sample(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "0" * 16
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().contiguous().reshape(-1)
    step = max(1, flat.numel() // SAMPLED)
    return hashlib.sha256(flat[::step].cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()[:16]


def layers_apart(written: Mapping[str, LayerEntry], present: Mapping[str, LayerEntry], most: int = 4) -> list[str]:
    """What differs in layers, shapes and dtypes, the first ones in the order of the network.

    Args:
        written: Of the base that the checkpoint was made with.
        present: Of the base at hand.
        most: Lines to give.

    Returns:
        A line for each of the first layers that differ; empty if none does.
    """
    lines = []
    layers: dict[str, list[str]] = {}
    for key in dict.fromkeys([*written, *present]):
        layers.setdefault(key.rpartition(".")[0], []).append(key)
    for layer, keys in layers.items():
        told = [line for key in keys if (line := _apart(key, written.get(key), present.get(key)))]
        if told:
            lines.append(f"{layer or 'the model itself'}: {', '.join(told)}")
        if len(lines) == most:
            break
    return lines


def _apart(key: str, written: LayerEntry | None, present: LayerEntry | None) -> str:
    name = key.rpartition(".")[2]
    if written is None or present is None:
        entry, where = (written, "only in the checkpoint's base") if present is None else (present, "only in this one")
        assert entry is not None
        return f"{name} {list(entry.shape)} is {where}"
    if written.shape != present.shape:
        return f"{name} is {list(written.shape)} in the checkpoint's base and {list(present.shape)} in this one"
    if written.dtype != present.dtype:
        return f"{name} is {written.dtype} in the checkpoint's base and {present.dtype} in this one"
    return ""


def values_apart(written: Mapping[str, LayerEntry], present: Mapping[str, LayerEntry]) -> list[str]:
    """Keys whose values differ in the sample."""
    return [key for key, entry in written.items() if key in present and present[key].sample != entry.sample]
