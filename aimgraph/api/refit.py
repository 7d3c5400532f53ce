"""refit: the same memories on a base whose layers were changed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

from torch import nn

from aimgraph.api.controls import disable_memory
from aimgraph.api.strip import strip
from aimgraph.api.transform import transform
from aimgraph.compiler.aim_paths import DEFAULT, SETS, aim_path, is_added
from aimgraph.compiler.graph_tools import submodule_at
from aimgraph.config import AimConfig
from aimgraph.copies import copy_module
from aimgraph.emit.changed import changed_sites
from aimgraph.emit.concat import refuse_concat
from aimgraph.emit.fixed_reads import fix_reads, stand_still
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import parts_of, replace_part
from aimgraph.emit.record import record_of
from aimgraph.emit.sets import add_set
from aimgraph.errors import ConfigError, PlanError
from aimgraph.planning.reads import MemoryPlan, PlannedUpdate, Read
from aimgraph.runtime.memory import Memory
from aimgraph.runtime.sources.given import GIVEN, GivenSource
from aimgraph.runtime.start import is_zero

M = TypeVar("M", bound=nn.Module)


def refit(aim: M, example_inputs: Any = None) -> M:
    """The memories of `aim` on what its base is now: with another head, stride or width, with layers more or less.

    The changed base is transformed again, with the options that `aim` was made with and memories of the same shapes.
    Values of memories, their updates, carried states and sets stay, and so do the read weights of every layer that has
    the same path, kind, outputs and options as before, and an input of the same grid. What else reads gets read weights
    of zero: there the result computes what the changed base computes, until it is trained. The notes of
    `aimgraph.plan` on the result say what was made anew.

    Args:
        aim: A transformed module in split form whose layers were changed, or a larger model with such parts. It is not
            changed, and shares nothing with the result: give an optimiser the parameters of that.
        example_inputs: As for `aimgraph.transform`, where the base takes others now; of a larger model, those of its
            only transformed part.

    Returns:
        A module like `aim`: the same class, modes, frozen parameters, memory sets and set in use. What has stayed has
        the same state-dict keys.

    Raises:
        PlanError: `aim` was not transformed, or by passes of your own; or no memory can be placed on the base as asked.
        ConfigError: Read weights are part of the base's own weights (concat form); or there are example inputs for
            several parts.
        ExampleInputError: The base does not run on the example inputs any more.
        TraceError: The base can't be traced any more.

    Example:
        >>> aim.head = nn.Linear(512, 5)  # doctest: +SKIP
        >>> aim = aimgraph.refit(aim)  # doctest: +SKIP
    """
    parts = parts_of(aim)
    if len(parts) > 1 and example_inputs is not None:
        raise ConfigError(f"refit(aim, example_inputs) is for one transformed part, and this model has {len(parts)}")
    for part in parts:
        check_can_refit(part, "refit")
    if isinstance(aim, AimModule):
        made: M = _refitted(aim, example_inputs)
        return made
    whole = copy_module(aim)
    for part in parts_of(whole):
        replace_part(whole, part, _refitted(part, example_inputs))
    return whole


def check_can_refit(part: Any, what: str) -> None:
    """Refuse a module whose memories can't be put on another base.

    Raises:
        ConfigError: Read weights are part of the base's own weights (concat form).
        PlanError: It was made by passes of the user's own, or has no memory.
    """
    refuse_concat(part, f"{what} can't tell a changed layer from its read weights")
    if other := record_of(part).other_passes:
        raise PlanError(
            f"this module was made with passes of your own ({', '.join(other)}), which {what} does not know: change "
            "aimgraph.strip(aim) and transform that"
        )
    if not record_of(part).plan.memories:
        raise PlanError(f"this module has no memory to {what} (passes=()): transform its base again")


def refit_widened(aim: nn.Module) -> AimModule:
    """A module whose layers and reads were widened together, with a plan and graphs of its present sizes."""
    made: AimModule = _refitted(aim, None, widened=True)
    return made


def _refitted(aim: Any, example_inputs: Any, *, widened: bool = False) -> Any:
    record = record_of(aim)
    old = record.plan.memories
    own = {"within": None, "lowering": "split"}  # no read is in concat form
    configs = [AimConfig(**(dict(one.config) | own | {"shape": one.shape, "source": _source(one)})) for one in old]
    inputs = record.inputs if example_inputs is None else example_inputs
    made: AimModule = transform(strip(aim), inputs, config=configs, inplace=True, example_batches=record.batches)
    for name, shares in record.sets.items():
        add_set(made, name, share_reads=shares, filled=True)
    fix_reads(made, record.fixed_reads)
    now = record_of(made)
    pairs = list(zip(old, now.plan.memories, strict=True))
    notes = [_fill(aim, made, one, other, widened=widened) for one, other in pairs]
    memories = tuple(replace(other, config=one.config) for one, other in pairs)
    now.plan = replace(now.plan, memories=memories, notes=(*now.plan.notes, *notes))
    now.frozen, now.stopped, now.lean = record.frozen, record.stopped, record.lean
    gradients = {name: parameter.requires_grad for name, parameter in aim.named_parameters(remove_duplicate=False)}
    for name, parameter in made.named_parameters(remove_duplicate=False):
        if not is_added(name):
            parameter.requires_grad_(gradients[name])  # strip has given back what freeze_base stopped
    made.train(made.training)
    made.use(record.chosen)
    return made if record.enabled else disable_memory(made).aim


def _source(memory: MemoryPlan) -> Any:
    """The source that is asked for; values that a tensor gave are filled in, as all others are."""
    return GivenSource if memory.config.source == GIVEN else memory.config.source


def _fill(aim: AimModule, made: AimModule, old: MemoryPlan, new: MemoryPlan, *, widened: bool) -> str:
    """Give a memory of `made` what still fits of the one in `aim`, in every set; what was made anew, in words."""
    anew: dict[str, None] = {}
    fresh: dict[str, list[nn.Module]] = {}
    sets, changed = record_of(aim).sets, {} if widened else changed_sites(aim)
    places = {DEFAULT: aim_path(old.name)} | {name: f"{SETS}.{name}.{old.name}" for name in sets}
    for place in places.values():
        for part in _parts(old, new, changed, widened=widened):
            module, before = submodule_at(made, f"{place}.{part.path}"), submodule_at(aim, f"{place}.{part.before}")
            if module is None or (part.before and before is not None and _adopt(before, module, own=part.read)):
                continue  # a set has those of the default one
            anew[part.what] = None
            fresh.setdefault(place, []).extend([module] if part.read else [])
    still = stand_still(made) and old.config.start == "zero_values"
    for place, reads in fresh.items():
        if still and place == places[DEFAULT]:
            continue  # drawn, and not trained: of zeros they could not even be
        shown = [place, *(places[name] for name, shared in sets.items() if shared and place == places[DEFAULT])]
        if not all(_is_zero(made, one) for one in shown):
            for module in reads:
                nn.init.zeros_(module.get_parameter("weight"))
    gone = sorted({read.site for read in old.reads} - {read.site for read in new.reads})
    told = [f"made anew: {', '.join(anew)}"] * bool(anew) + [f"gone: {', '.join(gone)}"] * bool(gone)
    return f"refit of memory {old.name!r}: {'; '.join(told) or 'all reads are as before'}"


def _is_zero(aim: AimModule, path: str) -> bool:
    """Whether the values of a memory are zero: it could not learn with reads of zero, and drawn ones change nothing."""
    memory = aim.get_submodule(path)
    return isinstance(memory, Memory) and is_zero(memory)


@dataclass(frozen=True)
class _Part:
    """A module of a memory.

    Attributes:
        what: It is, in words.
        path: Where it stands below the memory.
        before: Where the one stood that fits in its place; empty if there was none.
        read: Whether it is a read layer, below which others may stand.
    """

    what: str
    path: str
    before: str
    read: bool = False


def _parts(old: MemoryPlan, new: MemoryPlan, changed: dict[str, str], *, widened: bool) -> Iterator[_Part]:
    yield _Part("the values", "source", "source")
    if new.config.carry == "state":
        yield _Part("the carried state", "carry", "carry")
    reads = {_key(read): read for read in old.reads if read.site not in changed}
    for read in new.reads:
        before = reads.get(_key(read))
        yield _Part(read.site, f"reads.{read.name}", f"reads.{before.name}" if before else "", read=True)
        if read.view:
            yield _Part(f"view of {read.site}", read.view.path, before.view.path if before and before.view else "")
    spots = {_spot(update, widened): f"updates.{number}" for number, update in enumerate(old.updates)}
    for number, update in enumerate(new.updates):
        yield _Part(f"update at {update.spot.where}", f"updates.{number}", spots.get(_spot(update, widened), ""))


def _key(read: Read) -> tuple[Any, ...]:
    return read.site, read.name, read.kind, read.channels, read.grid


def _spot(update: PlannedUpdate, widened: bool) -> tuple[Any, ...]:
    return update.spot.where, 0 if widened else update.spot.features, update.spot.grid


def _adopt(before: nn.Module, module: nn.Module, *, own: bool) -> bool:
    """Give a module the tensors of another one, if they are of the same names and shapes.

    Args:
        before: Has them.
        module: Gets them.
        own: Whether those of modules below count as theirs.
    """
    was, now = (
        dict(chain(one.named_parameters(recurse=not own), one.named_buffers(recurse=not own)))
        for one in (before, module)
    )
    if {key: one.shape for key, one in was.items()} != {key: one.shape for key, one in now.items()}:
        return False
    for key, tensor in now.items():
        tensor.data = was[key].detach().clone()
        tensor.requires_grad_(was[key].requires_grad)
    return True
