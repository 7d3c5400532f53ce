"""save and load: a memory, or all of a model, as a JSON spec and a safetensors file; nothing is pickled.

A spec says how the base was transformed: it is transformed the same way again, and gets the values that were saved.
"""

import glob
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aimgraph.api.controls import disable_memory, freeze_base, parts_of
from aimgraph.api.transform import submodule, transform
from aimgraph.config import AimConfig
from aimgraph.errors import AimgraphError, CheckpointError, ConfigError
from aimgraph.export.fingerprint import fingerprint, layers_apart, values_apart
from aimgraph.export.spec import (
    BaseEntry,
    FileEntry,
    MemoryEntry,
    PartEntry,
    ReadEntry,
    SetEntry,
    Spec,
    TensorEntry,
    inputs_from_json,
    inputs_to_json,
)
from aimgraph.export.tensor_files import read_spec, read_tensors, write_files
from aimgraph.module import AimModule
from aimgraph.plan import MemoryPlan
from aimgraph.program import AIM, DEFAULT, Pass, Program, Stage
from aimgraph.sets import add_set, check_known, member
from aimgraph.version import __version__
from aimgraph.wrappers import check_plain

What = Literal["memory", "all"]

_SAME = ("source", "read", "updates", "pool", "mode", "carry", "rate", "write_in_eval")
"""Options that a memory's values don't show, and that change what is computed with them."""


def save(
    aim: nn.Module, folder: str | os.PathLike[str], *, what: What = "memory", memory_set: str | None = None
) -> Path:
    """Write the memory of `aim` into `folder`: ``aimgraph.json`` and a safetensors file beside it.

    A checkpoint that is there stays whole until the new one is: it is replaced by one rename.

    Args:
        aim: A transformed module, or a larger model with transformed parts.
        folder: Where to; made if missing.
        what: ``"memory"``: sources, read weights, updates and carried state, to be loaded onto the same base;
            ``"all"``: the base's weights and buffers, too.
        memory_set: Only this memory set, as if it were the only one, to be loaded as any other; by default all of them.

    Returns:
        The folder.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: `what` is neither, or there is no such memory set.
        CheckpointError: A value is not a number, or the files can't be written.
    """
    if what not in ("memory", "all"):
        raise ConfigError(f'what={what!r}: save takes what="memory" or what="all"')
    parts = _named_parts(aim)
    added, base = _tensors_of(aim, parts, strict=what == "all")
    if memory_set is not None:
        for part in parts.values():
            check_known(part._record, [memory_set])
        added = {key: added[_in_set(key, parts, memory_set)] for key in added if not _of_sets(key, parts)}
    tensors = added if what == "memory" else base | added

    def spec_of(entries: dict[str, TensorEntry], file: FileEntry) -> Spec:
        return Spec(
            aimgraph=__version__,
            torch=str(torch.__version__),
            what=what,
            base=BaseEntry(name=_base_name(aim), layers=fingerprint(base)),
            parts=tuple(_part_entry(path, part, whole=memory_set is None) for path, part in parts.items()),
            tensors=entries,
            file=file,
        )

    write_files(Path(folder), tensors, spec_of)
    return Path(folder)


def load(
    folder: str | os.PathLike[str], base: nn.Module, example_inputs: Any = None, *, inplace: bool = False
) -> nn.Module:
    """`base` with the memory that `save` wrote: transformed as it was then, and with its values, bit for bit.

    Args:
        folder: What was given to `save`.
        base: A model like the one that was transformed: the same layers, shapes and dtypes. It is not changed. Other
            weights are taken, with a warning; a checkpoint of ``what="all"`` brings its own.
        example_inputs: As for `aimgraph.transform`; by default those that the spec remembers.
        inplace: Share the base's parameter objects, as in `aimgraph.transform`.

    Raises:
        CheckpointError: The files are missing, damaged, of a later version, invalid, or made with another base; nothing
            is changed.
    """
    place = Path(folder)
    spec = read_spec(place)
    present = fingerprint(_state(base))
    _check_base(place, spec, present)
    tensors = read_tensors(place, spec)
    if spec.what == "memory" and (other := values_apart(spec.base.layers, present)):
        warnings.warn(
            f"{place}: the memory was saved with other weights of {spec.base.name}: {len(other)} of "
            f"{len(spec.base.layers)} tensors differ, the first is {other[0]}; load its base's weights first, or save "
            'with what="all"',
            stacklevel=2,
        )
    made = base
    for index, part in enumerate(spec.parts):
        made = _transformed(place, made, part, spec, tensors, example_inputs, inplace=inplace or index > 0)
    _put(place, made, spec.what, tensors, adopt=True)
    for part in spec.parts:
        if part.frozen:
            freeze_base(made if all(other.frozen for other in spec.parts) else _part(made, part.path))
        if not part.enabled:
            disable_memory(_part(made, part.path))
    return made


def load_memory(aim: nn.Module, folder: str | os.PathLike[str], *, memory_set: str | None = None) -> None:
    """Put the memory that `save` wrote in place of the one in `aim`: the same tensors get other values.

    Nothing is traced again; optimisers and compiled forwards go on. Of a checkpoint of ``what="all"``, only the memory
    is taken.

    Args:
        aim: A transformed module, or a larger model with transformed parts; changed in place.
        folder: What was given to `save`.
        memory_set: Where one set is to be put; by default in the set in use. A checkpoint of several sets replaces all
            of them.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: There is no such memory set.
        CheckpointError: The files are missing, damaged or invalid, or made with another base or with other options, or
            hold other read weights than those that a set shares; nothing is changed.
    """
    place = Path(folder)
    spec = read_spec(place)
    parts = _named_parts(aim)
    for part in parts.values():
        check_known(part._record, [memory_set or DEFAULT])
    _, base = _tensors_of(aim, parts, strict=False)
    _check_base(place, spec, fingerprint(base))
    if list(parts) != [part.path for part in spec.parts]:
        raise CheckpointError(
            f"{place}: it holds memories of {_places(part.path for part in spec.parts)}, and this model has them in "
            f"{_places(parts)}"
        )
    for entry in spec.parts:
        _check_same(place, entry, parts[entry.path])
    several = any(entry.sets for entry in spec.parts)
    for entry in spec.parts if several else ():
        _check_sets(place, entry, parts[entry.path], memory_set)
    _put(place, aim, "memory", read_tensors(place, spec), adopt=False, one=None if several else memory_set or "")


def _places(paths: Iterable[str]) -> str:
    return ", ".join(path or "the model itself" for path in paths)


def _named_parts(aim: nn.Module) -> dict[str, AimModule]:
    """Path -> transformed part."""
    known = parts_of(aim)
    return {path: module for path, module in aim.named_modules() if isinstance(module, AimModule) and module in known}


def _base_name(aim: nn.Module) -> str:
    return aim._record.base_class.__name__ if isinstance(aim, AimModule) else type(aim).__name__


def _state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a state dict."""
    state = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    check_plain(state)
    return state


def _tensors_of(
    aim: nn.Module, parts: Mapping[str, AimModule], *, strict: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the memories, and those of the base, by their keys in the model's state dict.

    Raises:
        CheckpointError: The state dict holds something else than tensors, where it is `strict`, or other than plain
            ones.
    """
    state = aim.state_dict()
    if strict and (other := [key for key, value in state.items() if not isinstance(value, Tensor)]):
        raise CheckpointError(
            f"{other[0]} of the base's state dict is a {type(state[other[0]]).__name__} and no tensor, which a "
            'safetensors file can\'t hold: save with what="memory", and the base with its own means'
        )
    names = dict(aim.named_modules(remove_duplicate=False))
    prefixes = tuple(_prefix(path) + f"{AIM}." for path, module in names.items() if isinstance(module, AimModule))
    kept = tuple(_prefix(path) + f"{AIM}." for path in parts)
    added = {key: value for key, value in state.items() if key.startswith(kept)}
    base = {key: v for key, v in state.items() if not key.startswith(prefixes) and isinstance(v, Tensor)}
    check_plain(base | added)
    return added, base


def _prefix(path: str) -> str:
    return f"{path}." if path else ""


def _of_sets(key: str, parts: Iterable[str]) -> bool:
    """Whether a key belongs to another set than the default one."""
    return any(key.startswith(f"{_prefix(path)}{AIM}.sets.") for path in parts)


def _in_set(key: str, parts: Mapping[str, AimModule], name: str) -> str:
    """The key in a set, of its own or of what it shares, that stands for one of the default set.

    Args:
        key: Of the default set.
        parts: The transformed parts.
        name: Of the set; empty for the one in use.
    """
    path = max((path for path in parts if key.startswith(f"{_prefix(path)}{AIM}.")), key=len)
    part = parts[path]
    return _prefix(path) + member(key.removeprefix(_prefix(path)), part, name or part._record.chosen)


def _part_entry(path: str, part: AimModule, *, whole: bool) -> PartEntry:
    record = part._record
    sets = record.sets if whole else {}
    return PartEntry(
        path=path,
        inputs=inputs_to_json(record.inputs),
        frozen=record.frozen,
        enabled=record.enabled,
        memories=tuple(_memory_entry(memory) for memory in record.plan.memories),
        sets=tuple(SetEntry(name=name, shares_reads=shared) for name, shared in sets.items()),
        use=record.chosen if whole else DEFAULT,
    )


def _memory_entry(memory: MemoryPlan) -> MemoryEntry:
    return MemoryEntry(
        config=memory.config.to_json(),
        shape=memory.shape,
        reads=tuple(
            ReadEntry(
                site=read.site,
                name=read.name,
                channels=read.channels,
                lowering="concat" if read.lowering == "concat" else "split",
                grids=tuple(tuple(call.spec.grid) for call in read.calls),
                values=tuple(call.value for call in read.calls),
            )
            for read in memory.reads
        ),
        updates=tuple(update.spot.where for update in memory.updates),
    )


def _check_base(place: Path, spec: Spec, present: Mapping[str, Any]) -> None:
    lines = layers_apart(spec.base.layers, present)
    if lines:
        told = "\n".join(f"  {line}" for line in lines)
        raise CheckpointError(
            f"{place} was made with another base ({spec.base.name}). The first layers that differ:\n{told}\n"
            "Load it onto the model that was transformed, in the dtype that it had"
        )


def _transformed(
    place: Path,
    model: nn.Module,
    part: PartEntry,
    spec: Spec,
    tensors: Mapping[str, Tensor],
    example_inputs: Any,
    *,
    inplace: bool,
) -> nn.Module:
    """`model` with the memories of `part`, whose values are still to come."""
    inputs = example_inputs
    if inputs is None and part.inputs is not None:
        inputs = inputs_from_json(part.inputs, str(place))
    if inputs is None:
        raise CheckpointError(
            f"{place}: the example inputs of {part.path or spec.base.name} are of a kind that no file can hold: give "
            "them to load as example_inputs"
        )
    configs = [_config(place, entry, part.path) for entry in part.memories]
    concat = any(config.lowering == "concat" for config in configs)
    check = _PlanCheck(place, part, tensors)
    try:
        if part.path:
            submodule(model, part.path)
        made: nn.Module = transform(model, inputs, config=configs, inplace=inplace and not concat, watch=[check])
    except CheckpointError:
        raise
    except AimgraphError as error:
        raise CheckpointError(f"{place}: this base can't be transformed as the checkpoint says: {error}") from error
    module = _part(made, part.path)
    plan = module._record.plan
    originals = (AimConfig.from_json(entry.config) for entry in part.memories)
    asked = tuple(replace(memory, config=config) for memory, config in zip(plan.memories, originals, strict=True))
    module._record.plan = replace(plan, memories=asked)
    try:
        for one in part.sets:
            add_set(module, one.name, share_reads=one.shares_reads, filled=True)
        module.use(part.use)
    except ConfigError as error:
        raise CheckpointError(f"{place}: {error}") from error
    return made


def _part(model: nn.Module, path: str) -> AimModule:
    part = model.get_submodule(path)
    assert isinstance(part, AimModule)
    return part


def _config(place: Path, entry: MemoryEntry, path: str) -> AimConfig:
    """The config that makes the same memory again: with its layers and its shape, whatever chose them."""
    layers = tuple(dict.fromkeys(glob.escape(read.site) for read in entry.reads))
    try:
        asked = AimConfig.from_json(entry.config)
        fixed = {"sites": layers, "exclude": (), "shape": entry.shape, "within": path or None}
        return AimConfig(**({name: getattr(asked, name) for name in AimConfig.model_fields} | fixed))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{place}: a memory's options are invalid: {error}") from error


@dataclass(frozen=True)
class _PlanCheck:
    """Compares the plan with the spec before anything is made of it."""

    place: Path
    part: PartEntry
    tensors: Mapping[str, Tensor]

    def __call__(self, done: Pass, program: Program) -> None:
        if program.stage is not Stage.PLANNED:
            return
        for memory, entry in zip(program.plan.memories, self.part.memories, strict=True):
            _check_memory(self.place, entry, memory)
            prefix = f"{_prefix(self.part.path)}{AIM}.{memory.name}."
            self._check_size(f"{prefix}source.", memory.source_parameters)
            for read in memory.reads:
                self._check_size(f"{prefix}reads.{read.name}.weight", read.parameters)
            for index, update in enumerate(memory.updates):
                self._check_size(f"{prefix}updates.{index}.", update.parameters)
            for one in self.part.sets:
                own = memory.source_parameters if one.shares_reads else memory.parameters
                self._check_size(f"{_prefix(self.part.path)}{AIM}.sets.{one.name}.{memory.name}.", own)

    def _check_size(self, prefix: str, needed: int) -> None:
        """Refuse to make what the file has no values for."""
        given = sum(tensor.numel() for key, tensor in self.tensors.items() if key.startswith(prefix))
        if given < needed:
            raise CheckpointError(f"{self.place}: {prefix} needs {needed:,} values, and the file holds {given:,}")


def _check_memory(place: Path, entry: MemoryEntry, memory: MemoryPlan) -> None:
    present = _memory_entry(memory)
    if present.shape != entry.shape:
        raise CheckpointError(
            f"{place}: memory {entry.name!r} has the shape {entry.shape}, and here it is {present.shape}"
        )
    if present.updates != entry.updates:
        raise CheckpointError(
            f"{place}: memory {entry.name!r} was written by {list(entry.updates)}, and here it is by "
            f"{list(present.updates)}"
        )
    for ours, theirs in zip(present.reads, entry.reads, strict=False):
        if ours != theirs:
            raise CheckpointError(
                f"{place}: memory {entry.name!r} was read at {theirs.name} with {theirs.channels} channels on "
                f"{_grids(theirs)} in {theirs.lowering} form, and here at {ours.name} with {ours.channels} on "
                f"{_grids(ours)} in {ours.lowering} form"
            )
    if len(present.reads) != len(entry.reads):
        raise CheckpointError(
            f"{place}: memory {entry.name!r} was read {len(entry.reads)} times, and here it is {len(present.reads)} "
            "times"
        )


def _grids(read: ReadEntry) -> str:
    return ", ".join(f"{list(grid)} (value {value})" for grid, value in zip(read.grids, read.values, strict=False))


def _check_same(place: Path, entry: PartEntry, part: AimModule) -> None:
    """Whether the memories of a part are of the same make as those of a spec."""
    here = {memory.name: memory for memory in part._record.plan.memories}
    if list(here) != [memory.name for memory in entry.memories]:
        raise CheckpointError(
            f"{place}: its memories are {[memory.name for memory in entry.memories]}, and those of "
            f"{entry.path or 'this model'} are {list(here)}"
        )
    for memory in entry.memories:
        try:
            theirs = AimConfig.from_json(memory.config)
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{place}: a memory's options are invalid: {error}") from error
        ours = here[memory.name].config
        for option in _SAME:
            if getattr(theirs, option) != getattr(ours, option):
                raise CheckpointError(
                    f"{place}: memory {memory.name!r} has {option}={getattr(theirs, option)!r}, and here it has "
                    f"{option}={getattr(ours, option)!r}: load onto the base with aimgraph.load instead"
                )
        _check_memory(place, memory, here[memory.name])


def _check_sets(place: Path, entry: PartEntry, part: AimModule, name: str | None) -> None:
    theirs = {one.name: one.shares_reads for one in entry.sets}
    if name is not None:
        raise CheckpointError(
            f"{place}: it holds the memory sets {[DEFAULT, *theirs]}, and only one can be put into {name!r}: save one "
            "with aimgraph.save(aim, folder, memory_set=...)"
        )
    if theirs != part._record.sets:
        raise CheckpointError(
            f"{place}: it holds the memory sets {_sets(theirs)}, and {entry.path or 'this model'} has "
            f"{_sets(part._record.sets)}"
        )


def _sets(sets: Mapping[str, bool]) -> str:
    return ", ".join([DEFAULT, *(f"{name} (values only)" if shared else name for name, shared in sets.items())])


def _put(
    place: Path,
    aim: nn.Module,
    what: What,
    tensors: Mapping[str, Tensor],
    *,
    adopt: bool,
    one: str | None = None,
) -> None:
    """Give `aim` the values of the file; all is checked before the first of them changes.

    Args:
        place: The checkpoint, for messages.
        aim: The model.
        what: Whether to take the memory, or all.
        tensors: What the file holds.
        adopt: Whether memories take the dtypes of the file, too; otherwise others are refused.
        one: The memory set that takes the one set of the file, empty for that in use; None for all of them.

    Raises:
        CheckpointError: Keys, shapes or dtypes are not those of the model.
    """
    parts = _named_parts(aim)
    added, base = _tensors_of(aim, parts, strict=False)
    if one is not None:
        added = {key: tensor for key, tensor in added.items() if not _of_sets(key, parts)}
    wanted = added if what == "memory" else base | added
    given = {key: tensor for key, tensor in tensors.items() if what == "all" or key not in base}
    _check_tensors(place, given, wanted, free=set(added) if adopt else set())
    if one is not None:
        given = _for_set(place, aim, parts, given, one)
    if what == "all":
        _adopt(aim, added, given)
        aim.load_state_dict(given)
        return
    _adopt(aim, added, given)
    for path, part in parts.items():
        prefix = _prefix(path)
        mine = {key.removeprefix(prefix): tensor for key, tensor in given.items() if key.startswith(f"{prefix}{AIM}.")}
        widened = {key: mine.pop(key) for site in part._record.widened for key in site.keys if key in mine}
        live = _live(part)
        with torch.no_grad():
            for key, tensor in mine.items():
                live[key].copy_(tensor)
        if widened:
            part.load_state_dict(widened, strict=False)


def _check_tensors(place: Path, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], free: set[str]) -> None:
    """Refuse other keys, shapes and, but for the keys that are `free` in it, dtypes than the model's."""
    if set(given) != set(wanted):
        key = min(set(given) ^ set(wanted))
        raise CheckpointError(f"{place}: {key!r:.200} is {'only in it' if key in given else 'not in it'}")
    for key, tensor in given.items():
        here = wanted[key]
        if tensor.shape != here.shape:
            raise CheckpointError(f"{place}: {key} is {list(tensor.shape)}, and here it is {list(here.shape)}")
        if tensor.dtype != here.dtype and key not in free:
            raise CheckpointError(
                f"{place}: {key} is {tensor.dtype}, and here it is {here.dtype}: convert this model first (`to`)"
            )


def _for_set(
    place: Path, aim: nn.Module, parts: Mapping[str, AimModule], given: Mapping[str, Tensor], name: str
) -> dict[str, Tensor]:
    """The values of a file by their keys in a set, without those that it shares."""
    live, made = _live(aim), {}
    for key, tensor in given.items():
        mine = _in_set(key, parts, name)
        chosen = {name or part._record.chosen for part in parts.values()}
        if mine == key and chosen != {DEFAULT}:
            if not torch.equal(live[key].cpu(), tensor):
                raise CheckpointError(
                    f"{place}: {key} differs from the read weights that this memory set shares with the default one: "
                    "put it into a set with read weights of its own"
                )
            continue
        made[mine] = tensor
    return made


def _adopt(aim: nn.Module, added: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Give the memories the dtypes of the file."""
    live = _live(aim)
    for key in added:
        if key in live and key in given and live[key].dtype != given[key].dtype:
            live[key].data = live[key].data.to(given[key].dtype)


def _live(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers themselves."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
