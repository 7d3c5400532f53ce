"""The tensors of a module that a checkpoint holds, and how they are put into another one."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from aimgraph.checkpoint.agree import check_tensors
from aimgraph.checkpoint.entries import What, key_prefix
from aimgraph.compiler.aim_paths import AIM, DEFAULT, SETS
from aimgraph.distance import as_laid_out
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import parts_of, tensors_named
from aimgraph.emit.plain_state import plain_state
from aimgraph.emit.record import record_of
from aimgraph.emit.set_names import member
from aimgraph.errors import CheckpointError
from aimgraph.tracing.wrapped import check_plain


def named_parts(aim: nn.Module) -> dict[str, AimModule]:
    """Path -> transformed part."""
    known = parts_of(aim)
    return {path: module for path, module in aim.named_modules() if isinstance(module, AimModule) and module in known}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict, by torch's own names."""
    state = {key: value for key, value in plain_state(module).items() if isinstance(value, Tensor)}
    check_plain(state)
    return state


def tensors_of(
    aim: nn.Module, parts: Mapping[str, AimModule], *, strict: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the memories, and those of the base, by their keys in the model's state dict.

    Raises:
        CheckpointError: The state dict holds something else than tensors, where it is `strict`, or other than plain
            ones; or it can't be had.
    """
    state = plain_state(aim)
    if strict and (other := [key for key, value in state.items() if not isinstance(value, Tensor)]):
        raise CheckpointError(
            f"{other[0]} of the base's state dict is a {type(state[other[0]]).__name__} and no tensor, which a "
            'safetensors file can\'t hold: save with what="memory", and the base with its own means'
        )
    names = dict(aim.named_modules(remove_duplicate=False))
    prefixes = tuple(key_prefix(path, AIM) for path, module in names.items() if isinstance(module, AimModule))
    kept = tuple(key_prefix(path, AIM) for path in parts)
    added = {key: value for key, value in state.items() if key.startswith(kept)}
    base = {key: v for key, v in state.items() if not key.startswith(prefixes) and isinstance(v, Tensor)}
    check_plain(base | added)
    return added, base


def trainable_of(aim: nn.Module, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a base that training changes: parameters that require gradients, and buffers around them.

    Buffers are those of a module that has such parameters, or of one without any beside it, as a norm may be.

    Args:
        aim: The model.
        base: The tensors of its base.
    """
    wanted = {name for name, one in aim.named_parameters(remove_duplicate=False) if one.requires_grad and name in base}
    owners = {name.rpartition(".")[0] for name in wanted}
    bare = {path for path, module in aim.named_modules(remove_duplicate=False) if not [*module.parameters()]}
    beside = {path for path in bare if any(f"{one}.".startswith(_above(path)) for one in owners)}
    buffers = {name for name, _ in aim.named_buffers(remove_duplicate=False)}
    taken = {name for name in buffers if name.rpartition(".")[0] in owners | beside}
    return {key: tensor for key, tensor in base.items() if key in wanted | taken}


def _above(path: str) -> str:
    above = path.rpartition(".")[0]
    return f"{above}." if above else ""


def of_sets(key: str, parts: Iterable[str]) -> bool:
    """Whether a key belongs to another set than the default one."""
    return any(key.startswith(key_prefix(path, SETS)) for path in parts)


def values_in(added: Mapping[str, Tensor], parts: Mapping[str, AimModule]) -> dict[str, Tensor]:
    """What belongs to the sources of memories, in all memory sets."""
    wanted = tuple(
        key_prefix(path, place, memory.name, "source")
        for path, part in parts.items()
        for place in (AIM, *(f"{SETS}.{name}" for name in record_of(part).sets))
        for memory in record_of(part).plan.memories
    )
    return {key: tensor for key, tensor in added.items() if key.startswith(wanted)}


def in_set(key: str, parts: Mapping[str, AimModule], name: str) -> str:
    """The key in a set, of its own or of what it shares, that stands for one of the default set.

    Args:
        key: Of the default set.
        parts: The transformed parts.
        name: Of the set; empty for the one in use.
    """
    path = max((path for path in parts if key.startswith(key_prefix(path, AIM))), key=len)
    part = parts[path]
    return key_prefix(path) + member(key.removeprefix(key_prefix(path)), part, name or record_of(part).chosen)


def put_tensors(
    place: Path, aim: nn.Module, what: What, tensors: Mapping[str, Tensor], *, adopt: bool, one: str | None = None
) -> None:
    """Give `aim` the values of the file; all is checked before the first of them changes.

    Args:
        place: The checkpoint, for messages.
        aim: The model.
        what: Whether to take values alone, the memory, with what else is in the file, or all.
        tensors: What the file holds.
        adopt: Whether memories take the dtypes of the file, too; otherwise others are refused.
        one: The memory set that takes the one set of the file, empty for that in use; None for all of them.

    Raises:
        CheckpointError: Keys, shapes or dtypes are not those of the model.
    """
    parts = named_parts(aim)
    added, base = tensors_of(aim, parts, strict=False)
    if what == "values":
        added = values_in(added, parts)
    if one is not None:
        added = {key: tensor for key, tensor in added.items() if not of_sets(key, parts)}
    held = base if what == "all" else {key: base[key] for key in tensors.keys() & base.keys() if what == "trainable"}
    wanted = held | added
    given = {key: tensor for key, tensor in tensors.items() if key in held or key not in base}
    check_tensors(place, given, wanted, free=set(added) if adopt else set())
    if one is not None:
        given = _for_set(place, aim, parts, given, one)
    _adopt(aim, added, given)
    if held:  # a weight in concat form is put together there
        laid_out = {key: as_laid_out(tensor, wanted.get(key, tensor)) for key, tensor in given.items()}
        nn.Module.load_state_dict(aim, laid_out if what == "all" else {**plain_state(aim), **laid_out})
        return
    for path, part in parts.items():
        keys = {key: key_prefix(path) + key for site in record_of(part).concat_sites for key in site.keys}
        widened = {key: given.pop(whole) for key, whole in keys.items() if whole in given}
        if widened:
            part.load_state_dict(widened, strict=False)
    live = dict(tensors_named(aim, every_name=True))
    with torch.no_grad():
        for key, tensor in given.items():
            live[key].copy_(tensor)


def _for_set(
    place: Path, aim: nn.Module, parts: Mapping[str, AimModule], given: Mapping[str, Tensor], name: str
) -> dict[str, Tensor]:
    """The values of a file by their keys in a set, without those that it shares."""
    live, made = dict(tensors_named(aim, every_name=True)), {}
    chosen = {name or record_of(part).chosen for part in parts.values()}
    for key, tensor in given.items():
        mine = in_set(key, parts, name)
        if mine != key or chosen == {DEFAULT}:
            made[mine] = tensor
        elif not torch.equal(live[key].cpu(), tensor):
            raise CheckpointError(
                f"{place}: {key} differs from the read weights that this memory set shares with the default one: "
                "put it into a set with read weights of its own"
            )
    return made


def _adopt(aim: nn.Module, added: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Give the memories the dtypes of the file."""
    live = dict(tensors_named(aim, every_name=True))
    for key in added.keys() & given.keys() & live.keys():
        live[key].data = live[key].data.to(given[key].dtype)
