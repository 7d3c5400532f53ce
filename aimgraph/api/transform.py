"""transform and plan: from a model to a plan, or to a module with memory."""

import difflib
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from aimgraph.api.controls import replace_module
from aimgraph.compiler.graph_data import plain_copy
from aimgraph.compiler.graph_text import dump_to
from aimgraph.compiler.node_keys import AIM
from aimgraph.compiler.pipeline import Pipeline, Verify, Watch
from aimgraph.compiler.program import Program
from aimgraph.config import AimConfig
from aimgraph.copies import paused_collection
from aimgraph.errors import ConfigError, PlanError
from aimgraph.frontend import build_program, check_base, clone
from aimgraph.inputs import recorded, resolve_inputs
from aimgraph.module import EXTRA_STATE, AimModule, Record, WidenedSite
from aimgraph.outside import Outside
from aimgraph.passes import EMITTING, PLANNING
from aimgraph.plan import Plan
from aimgraph.wrappers import check_wrapped

Configs = AimConfig | Sequence[AimConfig] | None


def transform(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    config: Configs = None,
    inplace: bool = False,
    dump: str | Path | None = None,
    verify: Verify = "touched",
    watch: Iterable[Watch] = (),
    **overrides: Any,
) -> Any:
    """Give `model` a memory that its layers can read.

    With the default ``init="zero"`` the result computes exactly what the model computes, bit for
    bit, until the memory is trained.

    Args:
        model: Any traceable module with a convolution or linear layer. It is not changed.
        example_inputs: A tensor, a tuple of positional inputs, a dict of keyword inputs, or
            (args, kwargs); inferred, with a warning, if left out. Only shapes and dtypes count.
            With ``within``, those of the submodule.
        config: One `AimConfig`, or one per memory, with distinct names.
        inplace: Share the model's parameter objects instead of copying them.
        dump: Folder to write the graph into after every pass.
        verify: Re-derive the shapes of the nodes that each pass touched, or of all (``"full"``).
        watch: Callables ``(pass, program)`` to call after each pass.
        **overrides: Fields of `AimConfig`, on top of every config.

    Returns:
        A `torch.fx.GraphModule` with the model's modules under their own names and the memory
        under ``aim``, an `AimModule`. The model's own train or eval mode is kept. With ``within``, a
        model of the same class whose submodule is such an `AimModule`.

    Raises:
        ConfigError: An option is invalid.
        ExampleInputError: The inputs don't fit the model or can't be inferred.
        TraceError: torch.fx can't trace the model.
        PlanError: No memory can be placed as asked.
        PassError: The compiler failed; please report it.

    Example:
        >>> aim = aimgraph.transform(torchvision.models.resnet50())  # doctest: +SKIP
    """
    configs = _configs(config, overrides)
    if inplace and any(c.lowering == "concat" for c in configs):
        raise ConfigError(
            'inplace=True shares the parameters of the model, and lowering="concat" needs wider ones: use "split"'
        )
    watches = (*watch, *([dump_to(Path(dump))] if dump is not None else []))
    within = _within(configs)
    if within is None:
        return _compile(model, example_inputs, configs, inplace, verify, watches)
    submodule(model, within)
    check_wrapped(model)
    whole = clone(model, share=inplace)
    part = submodule(whole, within)
    # the copy's parameters are shared with the part: those tied to others outside of it stay tied
    replace_module(whole, part, _compile(part, example_inputs, configs, True, verify, watches))
    return whole


@contextmanager
def _alone() -> Iterator[None]:
    """One compilation at a time, whatever gradients, inference and autocast are set to around it.

    Tracing replaces functions of torch for the whole process while it lasts.
    """
    with ExitStack() as stack:
        stack.enter_context(_COMPILING)
        stack.enter_context(paused_collection())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
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
    verify: Verify,
    watches: tuple[Watch, ...],
) -> AimModule:
    check_base(model)
    inputs = resolve_inputs(model, example_inputs)
    outside = Outside(model)
    with outside.kept():
        program = build_program(model, inputs, configs, share=share, outside=outside)
        base_graphs = {name: plain_copy(graph) for name, graph in program.graphs.items()}
        program = Pipeline((*PLANNING, *EMITTING), verify, watches).run(program)
    return _emit(model, program, base_graphs)


def plan(
    model: nn.Module, example_inputs: Any = None, *, config: Configs = None, inplace: bool = False, **overrides: Any
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
    made = [module for module in model.modules() if isinstance(module, AimModule)] if not overrides else []
    if len(made) == 1 and config is None:
        return made[0]._record.plan
    configs = _configs(config, overrides)
    within = _within(configs)
    if within is not None:
        part = submodule(model, within)
        check_wrapped(model)
        model = part
    check_base(model)
    inputs = resolve_inputs(model, example_inputs)
    outside = Outside(model)
    with _alone(), outside.kept():
        return Pipeline(PLANNING).run(build_program(model, inputs, configs, share=True, outside=outside)).plan


def _within(configs: tuple[AimConfig, ...]) -> str | None:
    places = {config.within for config in configs}
    if len(places) > 1:
        raise ConfigError(
            f"memories of one transform belong to one module, these ask for within={sorted(map(str, places))}"
        )
    return places.pop()


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The submodule at `path`.

    Raises:
        PlanError: There is none.
    """
    paths = [name for name, _ in model.named_modules() if name]
    if path not in paths:
        near = difflib.get_close_matches(path, paths, n=4, cutoff=0.4)
        hint = f"near misses: {', '.join(near)}" if near else f"there are: {', '.join(paths[:6])}"
        raise PlanError(f"within: {type(model).__name__} has no submodule {path!r}; {hint}")
    return model.get_submodule(path)


def _configs(config: Configs, overrides: dict[str, Any]) -> tuple[AimConfig, ...]:
    given = (config or AimConfig(),) if isinstance(config, AimConfig | None) else tuple(config)
    if not given:
        raise ConfigError("config=[] asks for no memory at all: leave it out for one memory with the defaults")
    for item in given:
        if not isinstance(item, AimConfig):
            raise ConfigError(f"config holds a {type(item).__name__}; give AimConfig objects")
    fields = AimConfig.model_fields
    configs = tuple(AimConfig(**({name: getattr(item, name) for name in fields} | overrides)) for item in given)
    names = [item.name for item in configs]
    if len(set(names)) < len(names):
        raise ConfigError(f"memories need distinct names, these are {names}: give each AimConfig a name=")
    return configs


def _emit(model: nn.Module, program: Program, base_graphs: dict[str, fx.Graph]) -> AimModule:
    root, kind = program.root, type(model)
    for module in root.get_submodule(AIM).modules():
        module.training = root.training
    internal = set(vars(nn.Module()))
    attributes = tuple(name for name in vars(model) if name not in internal)
    lost = _lost_members(kind)
    notes = (f"methods of {kind.__name__} that are lost: {', '.join(lost)}",) if lost else ()
    record = Record(
        plan=replace(program.plan, notes=program.plan.notes + notes),
        base_class=kind,
        base_attributes=attributes,
        lost_methods=lost,
        inputs=recorded(program.signature.example),
        moded=program.signature.moded,
        graphs={name: plain_copy(graph) for name, graph in program.graphs.items()},
        base_graphs=base_graphs,
        widened=_widened_sites(program),
        held=_held_modes(root),
    )
    return AimModule(root, record)


def _held_modes(root: nn.Module) -> dict[bool, tuple[str, ...]]:
    """Mode of the model -> paths of the modules that its own ``train()`` keeps in the other one (frozen norms)."""
    if type(root).train is nn.Module.train and type(root).eval is nn.Module.eval:
        return {}
    flags = {module: module.training for module in root.modules()}
    held = {}
    for mode in (True, False):
        root.train(mode) if mode else root.eval()
        paths = [path for path, module in root.named_modules() if module is not root and module.training != mode]
        held[mode] = tuple(path for path in paths if path != AIM and not path.startswith(f"{AIM}."))
    for module, flag in flags.items():
        module.training = flag
    return held


def _lost_members(kind: type[nn.Module]) -> tuple[str, ...]:
    """Methods and properties of the base's class that an `AimModule` does not have, or has for itself."""
    own = {name for parent in kind.__mro__ if parent not in nn.Module.__mro__ for name in vars(parent)}
    protocols = {"__len__", "__getitem__", "__iter__", "__contains__"}
    names = sorted(name for name in own if not name.startswith("_") or name in protocols)
    replaced = {"forward", "train", "eval", *EXTRA_STATE}
    return tuple(
        name
        for name in names
        if name not in replaced and (callable(value := getattr(kind, name)) or isinstance(value, property))
    )


def _widened_sites(program: Program) -> tuple[WidenedSite, ...]:
    found: dict[str, list[tuple[str, int]]] = {}
    for memory in program.plan.memories:
        for read in memory.reads:
            if read.lowering == "concat":
                key = f"{AIM}.{memory.name}.reads.{read.name}.weight"
                found.setdefault(read.site, []).append((key, read.channels))
    paths: dict[nn.Module, list[str]] = {}
    for path, module in program.root.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    return tuple(
        WidenedSite(
            site,
            tuple(paths[program.root.get_submodule(site)]),
            tuple(key for key, _ in reads),
            tuple(k for _, k in reads),
        )
        for site, reads in found.items()
    )
