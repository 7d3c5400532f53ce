"""transform and plan: from a model to a plan, or to a module with memory."""

import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import nn

from aimgraph.compiler.graph_text import DumpTo
from aimgraph.compiler.pipeline import Pipeline, Verify, Watch
from aimgraph.compiler.program import Pass, Stage
from aimgraph.config import AimConfig, renamed_init
from aimgraph.copies import paused_collection
from aimgraph.emit.emit import emit
from aimgraph.emit.kept import kept_by
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import named_parts, replace_module, submodule
from aimgraph.emit.record import record_of
from aimgraph.errors import ConfigError
from aimgraph.fake.leftovers import Outside
from aimgraph.inputs.examples import resolve_inputs
from aimgraph.passes import EMITTING, PLANNING
from aimgraph.planning.budget import over_budget
from aimgraph.planning.plan import Plan
from aimgraph.runtime.given import given_path
from aimgraph.runtime.sources.given import GIVEN
from aimgraph.torch_private import warn_if_untested
from aimgraph.tracing.check_base import check_base
from aimgraph.tracing.frontend import build_program, clone
from aimgraph.tracing.graph_modules import plain_module
from aimgraph.tracing.wrapped import check_wrapped

Configs = AimConfig | Sequence[AimConfig] | None


M = TypeVar("M", bound=nn.Module)


@overload
def transform(
    model: M,
    example_inputs: Any = None,
    *,
    within: str,
    config: Configs = None,
    inplace: bool = False,
    dump: str | Path | None = None,
    verify: Verify = "touched",
    watch: Iterable[Watch] = (),
    passes: Pass | Sequence[Pass] | None = None,
    example_batches: tuple[int, int] | None = None,
    **overrides: Any,
) -> M: ...


@overload
def transform(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    config: Configs = None,
    inplace: bool = False,
    dump: str | Path | None = None,
    verify: Verify = "touched",
    watch: Iterable[Watch] = (),
    passes: Pass | Sequence[Pass] | None = None,
    example_batches: tuple[int, int] | None = None,
    **overrides: Any,
) -> AimModule: ...


def transform(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    config: Configs = None,
    inplace: bool = False,
    dump: str | Path | None = None,
    verify: Verify = "touched",
    watch: Iterable[Watch] = (),
    passes: Pass | Sequence[Pass] | None = None,
    example_batches: tuple[int, int] | None = None,
    **overrides: Any,
) -> Any:
    """Give `model` a memory that its layers can read, or what passes of your own give it.

    With ``start="zero_reads"`` (the default) or ``start="zero_values"`` the result computes exactly what the model
    computes, bit for bit, until the memory is trained.

    Args:
        model: Any traceable module with a convolution or linear layer. It is not changed.
        example_inputs: A tensor, a tuple of positional inputs, a dict of keyword inputs, or
            (args, kwargs); inferred, with a warning, if left out. Shapes and dtypes count; the numbers where a model
            decides by them, or takes no others.
            With ``within``, those of the submodule.
        config: One `AimConfig`, or one per memory, with distinct names.
        inplace: Share the model's parameter objects instead of copying them.
        dump: Folder to write the graph into as it was traced, and after every pass.
        verify: Re-derive the shapes of the nodes that each pass touched, or of all (``"full"``).
        watch: Callables ``(pass, program)`` to call after each pass.
        passes: What to run; by default ``(*aimgraph.passes.PLANNING, *aimgraph.passes.EMITTING)``, which insert the
            memory. See docs/writing_passes.md.
        example_batches: Two batch sizes that the model takes, at which it is looked at. By default the example's and
            the next one, or, where the model does not run at that, twice or half as many samples.
        **overrides: Fields of `AimConfig`, on top of every config.

    Returns:
        A `torch.fx.GraphModule` with the model's modules under their own names and the memory
        under ``aim``, an `AimModule`. The model's own train or eval mode is kept. With ``within``, a
        model of the same class whose submodule is such an `AimModule`. Type checkers know which by the keyword
        ``within=``; an `AimConfig` that holds it tells them nothing.

    Raises:
        ConfigError: An option is invalid.
        ExampleInputError: The inputs don't fit the model or can't be inferred.
        TraceError: torch.fx can't trace the model.
        PlanError: No memory can be placed as asked.
        PassError: A pass failed, or changed what it does not declare; of aimgraph's own passes, please report it.

    Example:
        >>> aim = aimgraph.transform(torchvision.models.resnet50())  # doctest: +SKIP
    """
    warn_if_untested()
    configs, batches = _configs(config, overrides), _batches(example_batches)
    if inplace and any(c.lowering == "concat" for c in configs):
        raise ConfigError(
            'inplace=True shares the parameters of the model, and lowering="concat" needs wider ones: use "split"'
        )
    if not isinstance(watch, Iterable) or not all(map(callable, watch)):
        raise ConfigError(f"watch={watch!r}: give a list of functions, each called as watch(pass, program)")
    watches: tuple[Watch, ...] = (*watch, *([DumpTo(given_path(dump, "dump"))] if dump is not None else []))
    asked = (*PLANNING, *EMITTING) if passes is None else passes if isinstance(passes, Sequence) else (passes,)
    pipeline = Pipeline(tuple(asked), verify, watches)
    _check_sequence(pipeline, {*overrides, *(["config"] if config else [])} - {"within"})
    within = _within(configs)
    if within is None:
        aim = _compile(model, example_inputs, configs, inplace, pipeline, None if inplace else model, batches)
        _warn_over_budget(aim)
        return aim
    submodule(model, within)
    check_wrapped(model)
    whole = clone(model, share=inplace)
    part = submodule(whole, within)
    # the copy's parameters are shared with the part: those tied to others outside of it stay tied
    original = None if inplace else model
    aim = _compile(part, example_inputs, configs, True, pipeline, original, batches)
    _warn_over_budget(aim)
    replace_module(whole, part, aim)
    return whole


def _warn_over_budget(aim: AimModule) -> None:
    """Tell the caller of `transform` that a memory adds more than its budget.

    Where that is `load`, `refit` or another part of aimgraph, nothing is said: the user was told before.
    """
    caller = sys._getframe(1).f_back
    name = str(caller.f_globals.get("__name__")) if caller is not None else ""
    if name.startswith("aimgraph.") and not name.startswith("aimgraph.cli."):
        return
    plan = record_of(aim).plan
    for memory in plan.memories:
        if said := over_budget(memory, plan.base_parameters):
            warnings.warn(f"{said}; give shape=, fewer sites=, or a larger budget=", stacklevel=3)


def _check_sequence(pipeline: Pipeline, options: set[str]) -> None:
    """Refuse passes that leave a memory half inserted, and options that no pass would look at."""
    reached = pipeline.ensures
    if reached in (Stage.PLANNED, Stage.MEMORY):
        raise ConfigError(
            f"the passes end at stage {reached.name}, where a memory is planned and not part of the graph yet: let "
            "*aimgraph.passes.EMITTING follow"
        )
    if reached > Stage.LOWERED:
        raise ConfigError(
            f"the passes reach stage {reached.name}, where weights of the base hold what a memory gave, and nothing "
            "can be trained or stripped: end with *aimgraph.passes.EMITTING, then call aimgraph.fold or export_onnx"
        )
    if reached < Stage.PLANNED and options:
        raise ConfigError(
            f"{sorted(options)} are options of a memory, and none of the passes inserts one: leave them out, or let "
            "the passes begin with *aimgraph.passes.PLANNING and *aimgraph.passes.EMITTING"
        )


@contextmanager
def _alone() -> Iterator[None]:
    """One compilation at a time, whatever gradients, inference and autocast are set to around it.

    Tracing replaces functions of torch for the whole process while it lasts.
    """
    with _COMPILING, paused_collection(), torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for device in ("cpu", "cuda", "xpu", "mps"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


_COMPILING = threading.RLock()


@_alone()
def _compile(
    model: nn.Module,
    example_inputs: Any,
    configs: tuple[AimConfig, ...],
    share: bool,
    pipeline: Pipeline,
    original: nn.Module | None,
    batches: tuple[int, int] | None,
) -> AimModule:
    model = plain_module(model)
    check_base(model)
    inputs = resolve_inputs(model, example_inputs)
    outside = Outside(model, original)
    for note in outside.notes():
        warnings.warn(note, stacklevel=4)
    with outside.kept():
        program = build_program(model, inputs, configs, share=share, outside=outside, batches=batches)
        program = pipeline.run(program).program
    return emit(model, program)


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    config: Configs = None,
    inplace: bool | None = None,
    example_batches: tuple[int, int] | None = None,
    **overrides: Any,
) -> Plan:
    """What `transform` would do with the same arguments; nothing is changed.

    Given the result of a transform, or a larger model with one transformed part, the plan that made it.

    Returns:
        The plan; it prints as a table.

    Raises:
        ConfigError: An option is invalid.
        ExampleInputError: The inputs don't fit the model or can't be inferred.
        TraceError: torch.fx can't trace the model.
        PlanError: No memory can be placed as asked.
    """
    if inplace is not None:
        warnings.warn("plan(inplace=) does nothing, as a plan changes nothing: leave it out", stacklevel=2)
    not_a_model = not isinstance(model, nn.Module)
    made = list(named_parts(model).values()) if not (overrides or not_a_model) else []
    if len(made) == 1 and config is None:
        return replace(record_of(made[0]).plan, kept=kept_by(made[0]))
    configs, batches = _configs(config, overrides), _batches(example_batches)
    within, original = _within(configs), model
    if not_a_model:
        check_base(model)
    if within is not None:
        part = submodule(model, within)
        check_wrapped(model)
        model = part
    model = plain_module(model)
    check_base(model)
    inputs = resolve_inputs(model, example_inputs)
    outside = Outside(model, original)
    with _alone(), outside.kept():
        program = build_program(model, inputs, configs, share=True, outside=outside, batches=batches)
        planned = Pipeline(PLANNING).run(program).program
        made_of = emit(model, Pipeline(EMITTING).run(planned).program)
    return replace(planned.plan, kept=kept_by(made_of))


def _batches(given: Any) -> tuple[int, int] | None:
    if given is None:
        return None
    sizes = tuple(given) if isinstance(given, tuple | list) else ()
    if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes) or sizes[0] == sizes[1]:
        raise ConfigError(f"example_batches={given!r}: give two batch sizes that the model takes, such as (4, 8)")
    return min(sizes), max(sizes)


def _within(configs: tuple[AimConfig, ...]) -> str | None:
    places = {config.within for config in configs}
    if len(places) > 1:
        raise ConfigError(
            f"memories of one transform belong to one module, these ask for within={sorted(map(str, places))}"
        )
    return places.pop()


def _configs(config: Any, overrides: dict[str, Any]) -> tuple[AimConfig, ...]:
    if isinstance(config, Mapping | str) or not isinstance(config, AimConfig | Iterable | None):
        remedy = "AimConfig(**config)" if isinstance(config, Mapping) else "AimConfig(...)"
        raise ConfigError(
            f"config is a {type(config).__name__}: give {remedy}, a list of such, or the options by themselves, as "
            "transform(model, x, shape=(7, 7, 64))"
        )
    given = (config or AimConfig(),) if isinstance(config, AimConfig | None) else tuple(config)
    if not given:
        raise ConfigError("config=[] asks for no memory at all: leave it out for one memory with the defaults")
    for item in given:
        if not isinstance(item, AimConfig):
            raise ConfigError(f"config holds a {type(item).__name__}; give AimConfig objects")
    if "init" in overrides:
        overrides, said = renamed_init(overrides)
        warnings.warn(f"init= has another name: give {said}", stacklevel=3)
    configs = tuple(item.with_options(**overrides) for item in given)
    for item in configs:
        if item.source == GIVEN:
            raise ConfigError(
                f"memory {item.name!r}: source={GIVEN!r} is how a checkpoint is read: give the tensor itself"
            )
    names = [item.name for item in configs]
    if len(set(names)) < len(names):
        raise ConfigError(f"memories need distinct names, these are {names}: give each AimConfig a name=")
    return configs
