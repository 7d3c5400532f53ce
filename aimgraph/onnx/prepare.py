"""What is exported: the folded module, with memories as inputs or states, or the module as it is."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aimgraph.api.fold import exposed, fold
from aimgraph.compiler.aim_paths import aim_path
from aimgraph.emit.concat import refuse_concat
from aimgraph.emit.folded_module import FoldedModule
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import named_parts
from aimgraph.emit.record import record_of
from aimgraph.emit.settled import settled
from aimgraph.errors import ExportError
from aimgraph.inputs.arguments import Arguments
from aimgraph.onnx.refuse import check_memory, refuse_exposed, refuse_lost_writes
from aimgraph.passes.expose_state import Exposed, Kind, exposable
from aimgraph.planning.plan import Plan
from aimgraph.torch_private import tree_map_only

Memory = Literal["constant", "input", "state", "inside", "none"]


@dataclass(frozen=True)
class Prepared:
    """A module to export.

    Attributes:
        module: Takes the exposed memories before the base's arguments; gives (output, states) if there are states.
        memory: Where the memory is; see `aimgraph.export_onnx`. Empty without one.
        exposed: The memories that are arguments, in order.
        initial: Memory -> the value it has in the module, [1, N]; [N] for a carried state.
        plan: Of the transform.
        float16: Whether its numbers are of half precision.
    """

    module: nn.Module
    memory: str
    exposed: tuple[Exposed, ...] = ()
    initial: Mapping[str, Tensor] = field(default_factory=dict)
    plan: Plan | None = None
    float16: bool = False

    def cast(self, inputs: Any) -> Any:
        """Inputs in the precision of the module."""
        if not self.float16:
            return inputs
        return tree_map_only(Tensor, lambda leaf: leaf.half() if leaf.is_floating_point() else leaf, inputs)

    def example(self, item: Exposed, batch: int) -> Tensor:
        """A value for an exposed memory: the initial one, with rows for a batch where it has rows."""
        value = self.initial[item.memory]
        made: Tensor = self.cast(value.repeat(batch, 1) if item.rows in ("any", "batch") else value)
        return made


def prepare(aim: nn.Module, inputs: Arguments, memory: Memory | None, *, dynamic_size: bool) -> Prepared:
    """What to export of a module in eval mode.

    Args:
        aim: A transformed or folded module, one with transformed parts, or any other.
        inputs: (args, kwargs).
        memory: As for `aimgraph.export_onnx`.
        dynamic_size: Whether sizes are to vary.

    Raises:
        ExportError: There is no memory of the kind, a write would be lost, or sets have read weights of their own.
        ConfigError: Every sample has a memory set of its own.
    """
    check_memory(aim, memory)
    if not isinstance(aim, AimModule):
        return _prepare_other(aim, memory, dynamic_size=dynamic_size)
    record = record_of(aim)
    if record.concat_sites:
        if memory not in (None, "inside"):
            refuse_concat(aim, f"memory={memory!r} can't be exported", ExportError)
        refuse_lost_writes(aim, None)
        if dynamic_size:
            refuse_concat(aim, "sizes can't vary", ExportError)
        return Prepared(aim, "inside", plan=record.plan)
    mode = memory or ("inside" if dynamic_size else "constant")
    kind: Kind | None = mode if mode in ("input", "state") else None
    memories = record.plan.memories
    named = [one.name for one in memories if kind and exposable(one, kind)]
    if kind and not named:
        what, other = ("has updates", "state") if kind == "input" else ("is without updates", "input")
        raise ExportError(f"memory={mode!r}: every memory of this model {what}; export with memory={other!r}")
    refuse_lost_writes(aim, kind)
    refuse_exposed(aim, kind)
    if mode == "inside" and not dynamic_size:
        return Prepared(aim, mode, plan=record.plan)
    own, keep = settled(aim), tuple(one.name for one in memories if dynamic_size or one.name in named)
    made, described = exposed(own, inputs, kind, keep=keep, sizes=dynamic_size)
    initial = {item.memory: _initial(own, item) for item in described}
    return Prepared(made, mode, described, initial, record.plan)


def _prepare_other(module: nn.Module, memory: Memory | None, *, dynamic_size: bool) -> Prepared:
    parts = named_parts(module).values()
    for part in parts:
        refuse_lost_writes(part, None)
    if isinstance(module, FoldedModule):
        if dynamic_size and module.folds.maps:
            raise ExportError("bias maps are of one size: export what aimgraph.transform gives, with dynamic_size=True")
        return Prepared(module, "constant")
    whole = all(record_of(part).enabled and not record_of(part).concat_sites for part in parts)
    if memory == "none" or not parts:
        return Prepared(module, "" if memory == "none" else "constant")
    if not whole or memory == "inside" or (dynamic_size and memory is None):
        return Prepared(module, "inside")
    return Prepared(fold(module, fuse_batchnorm=True), "constant")


def _initial(aim: AimModule, item: Exposed) -> Tensor:
    path = aim_path(item.memory)
    carried = item.rows == "none"
    value: Tensor = aim.get_buffer(f"{path}.carry.state") if carried else aim.get_submodule(f"{path}.source")()
    return value.detach().clone()


def half(prepared: Prepared) -> Prepared:
    """The same in half precision; a copy."""
    return replace(prepared, module=copy.deepcopy(prepared.module).half().eval(), float16=True)


def in_half(module: nn.Module) -> bool:
    """Whether the parameters of a module are in half precision.

    Raises:
        ExportError: They are in several precisions, or in one that files are not compared in.
    """
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    if kinds <= {torch.float32} or kinds == {torch.float16} or kinds == {torch.float64}:
        return kinds == {torch.float16}
    names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
    raise ExportError(
        f"the parameters are in {names}: give float16=True for a file in half precision, or call float() of the model "
        "for one in single precision"
    )


def torch_steps(aim: Any, prepared: Prepared) -> nn.Module | None:
    """A copy of `aim` that carries its state by itself, where all states of a file are carried."""
    if any(item.rows != "none" for item in prepared.exposed):
        return None
    made: AimModule = settled(aim).eval()
    for item in prepared.exposed:
        carry: Any = made.get_submodule(aim_path(item.memory, "carry"))
        carry.write_in_eval = True
    return made
