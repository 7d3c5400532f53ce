"""save and load: a memory, or all of a model, as a JSON spec and a safetensors file; nothing is pickled.

A spec says how the base was transformed: it is transformed the same way again, and gets the values that were saved.
"""

import glob
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aimgraph.api.controls import disable_memory, freeze_base
from aimgraph.api.transform import transform
from aimgraph.checkpoint.agree import PlanCheck, check_base, check_same, check_sets
from aimgraph.checkpoint.drawn import check_drawn, put_drawn, scales_key
from aimgraph.checkpoint.entries import What, lengthened
from aimgraph.checkpoint.fingerprint import fingerprint, values_apart
from aimgraph.checkpoint.spec import MemoryEntry, PartEntry, Spec
from aimgraph.checkpoint.tensor_files import read_spec, read_tensors
from aimgraph.checkpoint.values import named_parts, put_tensors, state_of, tensors_of
from aimgraph.compiler.aim_paths import DEFAULT
from aimgraph.config import AimConfig
from aimgraph.emit.fixed_reads import fix_reads
from aimgraph.emit.frozen import give_gradients
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import submodule
from aimgraph.emit.record import record_of
from aimgraph.emit.set_names import check_known
from aimgraph.emit.sets import add_set
from aimgraph.errors import AimgraphError, CheckpointError, ConfigError
from aimgraph.inputs.as_json import inputs_from_json
from aimgraph.runtime.given import given_path
from aimgraph.runtime.sources.given import GIVEN, GivenSource
from aimgraph.runtime.specs import PARTS, Factory
from aimgraph.tracing.wrapped import held_by, unwrapped


def load(
    folder: str | os.PathLike[str],
    base: nn.Module,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    components: Mapping[str, Factory] | None = None,
) -> nn.Module:
    """`base` with the memory that `save` wrote: transformed as it was then, and with its values, bit for bit.

    Args:
        folder: What was given to `save`.
        base: A model like the one that was transformed: the same layers, shapes and dtypes. It is not changed. Other
            weights are refused by a checkpoint of ``what="values"``, whose read weights are drawn again and stand still
            as after `aimgraph.freeze_reads`; they are taken, with a warning, by one of the memory. A checkpoint of
            ``what="all"`` brings its own, and one of ``what="trainable"`` those that were trained, which require
            gradients again.
        example_inputs: As for `aimgraph.transform`; by default those that the spec remembers.
        inplace: Share the base's parameter objects, as in `aimgraph.transform`.
        components: Name -> factory of the sources, reads and blocks that the checkpoint names and that are not
            registered here. Nothing is imported because a file says so.

    Raises:
        ConfigError: The arguments are in the wrong order, or `base` is wrapped or transformed already.
        CheckpointError: A source, read or block is unknown; or the files are missing, damaged, of a later version,
            invalid, or made with another base; or read weights that are drawn again have another digest; nothing is
            changed.
    """
    _check_arguments(folder, base)
    if components is not None and not (isinstance(components, Mapping) and all(map(callable, components.values()))):
        raise ConfigError(f"components={components!r}: give a dict, name -> factory")
    place = given_path(folder, "the folder of a checkpoint")
    spec = read_spec(place)
    present = fingerprint(state_of(base))
    check_base(place, spec, present)
    tensors = read_tensors(place, spec)
    held = {key: entry for key, entry in spec.base.layers.items() if key not in spec.tensors}
    if other := values_apart(held, present):
        warnings.warn(
            f"{place}: the memory was saved with other weights of {spec.base.name}: {len(other)} of "
            f"{len(held)} tensors differ, the first is {other[0]}; load its base's weights first, or save with "
            'what="trainable" (those that were trained) or what="all"',
            stacklevel=2,
        )
    made = base
    for index, part in enumerate(spec.parts):
        made = _transformed(
            place, made, part, spec, tensors, example_inputs, components or {}, inplace=inplace or index > 0
        )
    for part in spec.parts if spec.what == "values" else ():
        put_drawn(place, _part(made, part.path), part, tensors)
    put_tensors(place, made, spec.what, _without_scales(spec, tensors), adopt=True)
    _switch(made, spec)
    return made


def load_memory(aim: nn.Module, folder: str | os.PathLike[str], *, memory_set: str | None = None) -> None:
    """Put the memory that `save` wrote in place of the one in `aim`: the same tensors get other values.

    Nothing is traced again; optimisers and compiled forwards go on. Values alone are put where they are read by the
    weights that their file was made with, bit for bit. Of a checkpoint of ``what="trainable"`` or
    ``what="all"``, only the memory is taken.

    Args:
        aim: A transformed module, or a larger model with transformed parts; changed in place.
        folder: What was given to `save`.
        memory_set: Where one set is to be put; by default in the set in use. A checkpoint of several sets replaces all
            of them.

    Raises:
        PlanError: `aim` was not transformed.
        ConfigError: There is no such memory set.
        CheckpointError: The files are missing, damaged or invalid, or made with another base or with other options, or
            hold other read weights than those that a set shares, or values for other read weights; nothing is changed.
    """
    if not isinstance(aim, nn.Module):
        raise ConfigError("load_memory(aim, folder) takes the transformed model first, then the folder of a checkpoint")
    place, aim = given_path(folder, "the folder of a checkpoint"), unwrapped(aim)
    spec = read_spec(place)
    parts = named_parts(aim)
    for part in parts.values():
        check_known(record_of(part), [memory_set or DEFAULT])
    _, base = tensors_of(aim, parts, strict=False)
    check_base(place, spec, fingerprint(base))
    if list(parts) != [part.path for part in spec.parts]:
        raise CheckpointError(
            f"{place}: it holds memories of {_places(part.path for part in spec.parts)}, and this model has them in "
            f"{_places(parts)}"
        )
    for entry in spec.parts:
        check_same(place, entry, parts[entry.path])
    several = any(entry.sets for entry in spec.parts)
    for entry in spec.parts if several else ():
        check_sets(place, entry, parts[entry.path], memory_set)
    tensors = read_tensors(place, spec)
    for entry in spec.parts if spec.what == "values" else ():
        used = DEFAULT if several else memory_set or record_of(parts[entry.path]).chosen
        check_drawn(place, parts[entry.path], entry, tensors, used)
    what: What = "values" if spec.what == "values" else "memory"
    given = _without_scales(spec, tensors)
    put_tensors(place, aim, what, given, adopt=False, one=None if several else memory_set or "")


def _switch(made: nn.Module, spec: Spec) -> None:
    """What is frozen, fixed, switched off or trained in the base, as it was."""
    for part in spec.parts:
        if part.fixed_reads:
            fix_reads(_part(made, part.path), True)
        if part.frozen:
            freeze_base(made if all(other.frozen for other in spec.parts) else _part(made, part.path))
        if not part.enabled:
            disable_memory(_part(made, part.path))
    give_gradients(made, spec.tensors.keys() & spec.base.layers.keys() if spec.what == "trainable" else ())


def _check_arguments(folder: Any, base: Any) -> None:
    if isinstance(folder, nn.Module) or not isinstance(base, nn.Module):
        raise ConfigError("load(folder, base) takes the folder of a checkpoint first, then the model to give memory to")
    if any(isinstance(module, AimModule) for module in base.modules()):
        raise ConfigError(
            "this model is transformed already: aimgraph.load_memory(aim, folder) gives its memory other values, and "
            "load takes the model as it was before the transform (aimgraph.strip gives it back)"
        )
    if held_by(base) is not None:
        raise ConfigError(
            f"the model is wrapped in {type(base).__name__}: load onto what is wrapped, then wrap the result"
        )


def _without_scales(spec: Spec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scales = {scales_key(part.path, memory.name) for part in spec.parts for memory in part.memories if memory.drawn}
    return {key: tensor for key, tensor in tensors.items() if key not in scales}


def _places(paths: Iterable[str]) -> str:
    return ", ".join(path or "the model itself" for path in paths)


def _transformed(
    place: Path,
    model: nn.Module,
    part: PartEntry,
    spec: Spec,
    tensors: Mapping[str, Tensor],
    example_inputs: Any,
    components: Mapping[str, Factory],
    *,
    inplace: bool,
) -> nn.Module:
    """`model` with the memories of `part`, whose values are still to come."""
    inputs = _inputs_of(place, part, spec) if example_inputs is None else example_inputs
    configs = [_config(place, entry, part.path, components) for entry in part.memories]
    concat = any(config.lowering == "concat" for config in configs)
    check = PlanCheck(place, part, tensors)
    try:
        if part.path:
            submodule(model, part.path)
        shared = inplace and not concat
        made: nn.Module = transform(
            model, inputs, config=configs, inplace=shared, watch=[check], example_batches=part.batches
        )
    except CheckpointError:
        raise
    except AimgraphError as error:
        told = f"can't be transformed as the checkpoint says, which needs {[one.shape for one in part.memories]}"
        raise CheckpointError(f"{place}: this base {told}: {error}") from error
    module = _part(made, part.path)
    plan = record_of(module).plan
    originals = (AimConfig.from_json(entry.config) for entry in part.memories)
    asked = tuple(replace(memory, config=config) for memory, config in zip(plan.memories, originals, strict=True))
    record_of(module).plan = replace(plan, memories=asked)
    try:
        for one in part.sets:
            add_set(module, one.name, share_reads=one.shares_reads, filled=True)
        module.use(part.use)
    except ConfigError as error:
        raise CheckpointError(f"{place}: {error}") from error
    return made


def _inputs_of(place: Path, part: PartEntry, spec: Spec) -> Any:
    if part.inputs is None:
        raise CheckpointError(
            f"{place}: the example inputs of {part.path or spec.base.name} are of a kind that no file can hold: give "
            "them to load as example_inputs"
        )
    return inputs_from_json(part.inputs, str(place))


def _part(model: nn.Module, path: str) -> AimModule:
    part = model.get_submodule(path)
    assert isinstance(part, AimModule)
    return part


def _config(place: Path, entry: MemoryEntry, path: str, components: Mapping[str, Factory]) -> AimConfig:
    """The config that makes the same memory again: with its layers and its shape, whatever chose them."""
    sites = [read.site for read in entry.reads] if entry.drawn is None else lengthened(entry.drawn.sites)
    layers = tuple(dict.fromkeys(map(glob.escape, sites)))
    try:
        asked = AimConfig.from_json(entry.config)
        fixed: dict[str, Any] = {"sites": layers, "exclude": (), "shape": entry.shape, "within": path or None}
        fixed |= _components(place, asked, components)
        return AimConfig(**({name: getattr(asked, name) for name in AimConfig.model_fields} | fixed))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{place}: a memory's options are invalid: {error}") from error


def _components(place: Path, asked: AimConfig, components: Mapping[str, Factory]) -> dict[str, Factory]:
    """The factories that are given for a memory's parts; the other parts must be registered."""
    given: dict[str, Factory] = {}
    for role in PARTS:
        name = str(getattr(asked, role))
        if name in components:
            if not callable(components[name]) or components[name] is not PARTS[role].get(name, components[name]):
                raise CheckpointError(f"{place}: components: {name!r} is no factory, or the name of another {role}")
            given[role] = components[name]
        elif name == GIVEN:
            given[role] = GivenSource  # whose values are in the file
        elif name not in PARTS[role]:
            raise CheckpointError(
                f"{place}: memory {asked.name!r} was made with the {role} {name!r}, which is not known here: give load "
                f"components={{{name!r}: factory}}, or call aimgraph.register({role!r}, {name!r}, factory) before"
            )
    return given
