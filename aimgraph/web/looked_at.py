"""From a plan, a model, a transformed module or a checkpoint to what a report is about."""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.api.transform import plan as plan_of
from aimgraph.checkpoint.values import state_of
from aimgraph.compiler.aim_paths import DEFAULT, aim_path
from aimgraph.compiler.graph_tools import submodule_at
from aimgraph.distance import real_numbers
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import named_parts
from aimgraph.emit.record import record_of
from aimgraph.emit.set_names import member
from aimgraph.errors import ConfigError
from aimgraph.planning.plan import Plan
from aimgraph.planning.reads import MemoryPlan
from aimgraph.runtime.layer_kinds import is_layer
from aimgraph.web.effects import effects_of
from aimgraph.web.saved import subjects_in
from aimgraph.web.subject import Held, Key, Subject


def subjects_of(what: Any, examples: Any = None) -> list[Subject]:
    """What a report on a plan, a model or a checkpoint shows, one subject for each transformed part.

    Args:
        what: A plan; a model, transformed, in part or not at all; or the folder of a checkpoint.
        examples: Inputs of the model: for one that is not transformed, those to plan with; for a transformed one, those
            to switch each read off with.

    Raises:
        ConfigError: It is something else, or a plan or a checkpoint has examples.
        PlanError: No memory can be placed in the model.
        CheckpointError: The folder holds no checkpoint.
    """
    if isinstance(what, str | os.PathLike | Plan):
        if examples is not None:
            raise ConfigError("examples are run through a model, and this is a plan or a checkpoint: give the model")
        return [Subject("", what)] if isinstance(what, Plan) else subjects_in(what)
    if not isinstance(what, nn.Module):
        raise ConfigError(
            f"a report is about a plan, a model or the folder of a checkpoint, and this is a {type(what).__name__}"
        )
    parts = named_parts(what)
    if not parts:
        return [planned_subject(what, plan_of(what, examples))]
    effects = effects_of(what, parts, examples) if examples is not None else {}
    return [_transformed(path, part, effects.get(path, {})) for path, part in parts.items()]


def planned_subject(model: nn.Module, plan: Plan) -> Subject:
    """A plan, with what its model tells."""
    shapes, biased = _layers(model)
    return Subject("", plan, shapes, biased)


def _layers(model: nn.Module) -> tuple[dict[str | Key, tuple[int, ...]], frozenset[str]]:
    """Shapes of the weights of its layers, and which have a bias."""
    layers = {path: module for path, module in model.named_modules() if is_layer(module)}
    weights = {path: layer._parameters.get("weight") for path, layer in layers.items()}
    shapes: dict[str | Key, tuple[int, ...]] = {path: tuple(w.shape) for path, w in weights.items() if w is not None}
    return shapes, frozenset(path for path, layer in layers.items() if layer._parameters.get("bias") is not None)


def _transformed(path: str, part: AimModule, effects: Any) -> Subject:
    record, state = record_of(part), state_of(part)
    shapes, biased = _layers(part)
    shapes |= {name: tuple(state[f"{name}.weight"].shape) for name in shapes if f"{name}.weight" in state}
    reads = dict(_read_weights(part, state))
    shapes |= {key: tuple(weight.shape) for key, weight in reads.items()}
    norms = {key: _norm(weight) for key, weight in reads.items() if not weight.is_meta}
    held = {memory.name: tuple(_held(part, memory)) for memory in record.plan.memories}
    plan = plan_of(part)
    return Subject(path, plan, shapes, biased, held, norms, _moved(plan, held, norms), effects, tuple(_remarks(part)))


def _read_weights(part: AimModule, state: dict[str, Tensor]) -> Iterator[tuple[Key, Tensor]]:
    """The read weights of the memory set in use."""
    chosen = record_of(part).chosen
    for memory, read in record_of(part).plan.reads:
        path = aim_path(memory.name, "reads", read.name)
        weight = state.get(f"{member(path, part, chosen)}.weight", state.get(f"{path}.weight"))
        if weight is not None:
            yield (memory.name, read.name), weight


def _norm(weight: Tensor) -> float:
    return float(real_numbers(weight.detach()).double().norm())


def _held(part: AimModule, memory: MemoryPlan) -> Iterator[Held]:
    """What the source gives, what is carried, and their sum, of the memory set in use."""
    chosen = record_of(part).chosen
    source = part.get_submodule(member(aim_path(memory.name, "source"), part, chosen))
    with torch.no_grad():
        values = source().detach().flatten().cpu()
    if values.is_meta:
        return
    yield Held("source", memory.shape, values)
    carry = member(aim_path(memory.name, "carry"), part, chosen)
    if (carried := submodule_at(part, carry)) is not None:
        state = carried.get_buffer("state").detach().flatten().cpu()
        yield Held("carried state", memory.shape, state)
        yield Held("source + carried state, what the next batch reads first", memory.shape, values + state)


def _moved(plan: Plan, held: dict[str, tuple[Held, ...]], norms: dict[Key, float]) -> bool | None:
    """Whether a factor that was zero at the start is so no more; None where none was."""
    found = []
    for memory in plan.memories:
        if memory.config.start == "zero_reads":
            found.append(any(norm > 0 for (name, _), norm in norms.items() if name == memory.name))
        elif memory.config.start == "zero_values":
            found.append(any(bool(one.values.any()) for one in held[memory.name]))
    return any(found) if found else None


def _remarks(part: AimModule) -> Iterator[str]:
    record = record_of(part)
    if record.sets:
        chosen = "a set for each sample" if record.samples is not None else repr(record.chosen)
        yield f"Memory sets: {', '.join((DEFAULT, *record.sets))}. In use, and shown here: {chosen}."
    if not record.enabled:
        yield "The memory is switched off (aimgraph.disable_memory)."
    if record.frozen:
        yield "The base is frozen (aimgraph.freeze_base)."
    if record.fixed_reads:
        yield "The read weights are fixed (aimgraph.freeze_reads)."
