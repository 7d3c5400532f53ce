"""The two files of a checkpoint: written beside the old ones, then put in place by one rename; read with suspicion."""

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from aimgraph.checkpoint.spec import LARGEST, FileEntry, Spec, TensorEntry, parse_spec
from aimgraph.distance import dense
from aimgraph.errors import CheckpointError
from aimgraph.inputs.as_json import DTYPES, dtype_name

SPEC = "aimgraph.json"
"""Name of the spec. It names the file of the tensors, so that putting it in place changes both at once."""


def write_files(folder: Path, tensors: Mapping[str, Tensor], about: dict[str, Any]) -> None:
    """Write a checkpoint; the one that is there stays whole until the new one is.

    The tensors' file is named by its content. It is complete, and on the disk, before the spec that names it takes the
    place of the old spec, which is one rename. Only then is the old tensors' file removed.

    Args:
        folder: Where to; made if missing.
        tensors: Key -> tensor, on any device.
        about: The fields of the spec; what it says of the tensors and their file is added.

    Raises:
        CheckpointError: A tensor has values that are not a number, or the files can't be written.
    """
    plain = {key: dense(tensor.detach().cpu()).contiguous() for key, tensor in tensors.items()}
    refuse_nan(plain, "this model")
    new: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        old = _named(folder / SPEC)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as draft:
            path, spec = Path(draft) / "tensors", Path(draft) / SPEC
            name = _write_drafts(path, spec, plain, about)
            if name != old:
                new = folder / name
            path.replace(folder / name)
            spec.replace(folder / SPEC)
            _sync(folder)
    except BaseException as error:
        if new is not None and _named(folder / SPEC) != new.name:
            new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CheckpointError(f"{folder}: the checkpoint can't be written: {error}") from error
        raise
    if old is not None and new is not None:
        (folder / old).unlink(missing_ok=True)


def _write_drafts(path: Path, spec: Path, plain: Mapping[str, Tensor], about: dict[str, Any]) -> str:
    """Write both files, complete and on the disk; the name that the tensors' file is to have."""
    # every tensor apart: two of them may share memory, which a file can't
    save_file({key: tensor.clone() for key, tensor in plain.items()}, path, metadata={"format": "pt"})
    _sync(path)
    digest = file_sha256(path)
    file = FileEntry(name=f"tensors-{digest[:16]}.safetensors", bytes=path.stat().st_size, sha256=digest)
    entries = {
        key: TensorEntry(dtype=dtype_name(tensor), shape=tuple(tensor.shape), sha256=sha256_of(tensor))
        for key, tensor in plain.items()
    }
    spec.write_bytes(Spec(**about | {"tensors": entries, "file": file}).written())
    _sync(spec)
    return file.name


def read_spec(folder: Path) -> Spec:
    """The spec of a checkpoint.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    place = folder / SPEC
    try:
        size = _size(place)
        raw = place.read_bytes() if size <= LARGEST else b""
    except OSError as error:
        raise CheckpointError(f"{folder} holds no checkpoint that can be read: {error}") from error
    if size > LARGEST:
        raise CheckpointError(f"{place} has {size:,} bytes: no spec is that large")
    return parse_spec(raw, str(place))


def read_tensors(folder: Path, spec: Spec) -> dict[str, Tensor]:
    """The tensors of a checkpoint, each as the spec says it is.

    Nothing is allocated for a tensor before its size is known to be that of the file's content.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else.
    """
    path = folder / spec.file.name
    try:
        found = _tensors(path, spec)
        whole = file_sha256(path) == spec.file.sha256
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    except Exception as error:  # whatever the parser makes of a file that may come from dispatched
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not whole:
        raise CheckpointError(f"{path} is damaged: it does not have the digest that was written down")
    refuse_nan(found, str(path))
    return found


def _size(path: Path) -> int:
    """Bytes of a file; one that is a pipe or a device would never end."""
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no file")
    return path.stat().st_size


def _tensors(path: Path, spec: Spec) -> dict[str, Tensor]:
    size = _size(path)
    if size != spec.file.bytes:
        raise CheckpointError(f"{path} is damaged: it has {size:,} bytes, and {spec.file.bytes:,} were written")
    with safe_open(path, framework="pt") as file:
        keys = set(file.keys())
        if keys != set(spec.tensors):
            other = sorted(keys ^ set(spec.tensors))[0]
            where = "holds" if other in keys else "lacks"
            raise CheckpointError(f"{path} {where} {other!r:.200}, and the spec says otherwise")
        found = {}
        for key, entry in spec.tensors.items():
            shape = tuple(file.get_slice(key).get_shape())
            if shape != entry.shape:
                raise CheckpointError(f"{path}: {key} is {list(shape)}, and the spec says {list(entry.shape)}")
            tensor = found[key] = file.get_tensor(key)
            if tensor.dtype != DTYPES.get(entry.dtype):
                raise CheckpointError(f"{path}: {key} is {tensor.dtype}, and the spec says {entry.dtype:.40}")
            if sha256_of(tensor) != entry.sha256:
                raise CheckpointError(f"{path} is damaged: the values of {key} do not have the digest of those written")
    return found


def refuse_nan(tensors: Mapping[str, Tensor], place: str) -> None:
    """Refuse values that are not a number.

    Raises:
        CheckpointError: There are some.
    """
    for key, tensor in tensors.items():
        bad = int(torch.isnan(tensor if tensor.element_size() > 1 else tensor.float()).sum())
        if bad:
            raise CheckpointError(f"{place}: {bad:,} of the {tensor.numel():,} values of {key} are not a number (NaN)")


def sha256_of(tensor: Tensor) -> str:
    """SHA-256 of the values, in row-major order."""
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _named(spec: Path) -> str | None:
    """The file that a spec names, whatever else stands in it."""
    try:
        found = re.search(rb'"name": ?"(tensors-[0-9a-f]{16}\.safetensors)"', spec.read_bytes())
    except OSError:
        return None
    return found[1].decode() if found else None


def _sync(path: Path) -> None:
    """Have the disk keep it; a folder's own entries where the system lets one ask."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
