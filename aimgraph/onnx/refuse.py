"""What is not written to a file, and why: each function raises an `ExportError` that says what to do."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from torch import Tensor, nn

from aimgraph.compiler.aim_paths import AIM, DEFAULT, SETS
from aimgraph.distance import nan_count, not_numbers
from aimgraph.emit.folded_module import FoldedModule
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import is_folded, named_parts
from aimgraph.emit.plain_state import state_tensors
from aimgraph.emit.record import record_of
from aimgraph.emit.retrace import has_hooks
from aimgraph.emit.set_names import member
from aimgraph.errors import ExportError
from aimgraph.fake.leftovers import Outside
from aimgraph.fake.run import FakeRun
from aimgraph.fake.tensors import quiet
from aimgraph.inputs.arguments import bound_arguments
from aimgraph.inputs.batch import random_inputs
from aimgraph.passes.expose_state import Kind
from aimgraph.runtime.call_names import OPAQUE_BASE
from aimgraph.runtime.opaque import OpaqueBase, OpaqueCall
from aimgraph.runtime.state import lost_write
from aimgraph.tracing.opaque import reason_of


def check_memory(module: nn.Module, memory: str | None) -> None:
    """A choice of where the memory is to be that does not fit what is exported."""
    kind, parts = type(module).__name__, named_parts(module)
    if memory == "none":
        if parts or is_folded(module):
            raise ExportError(
                f'memory="none" is for a model without a memory, and this {kind} has one: export what aimgraph.strip '
                "gives, or export within aimgraph.disable_memory(...)"
            )
    elif memory in ("input", "state") and not isinstance(module, AimModule):
        raise ExportError(
            f"memory={memory!r} needs what aimgraph.transform gives, and this is a {kind}"
            + (": transform the whole model, or export the transformed part" if parts else "")
        )
    elif not parts and not is_folded(module):
        raise ExportError(
            f"this {kind} has no memory, and neither would the file: give what aimgraph.transform or aimgraph.fold "
            'gives, or memory="none" to export the model as it is'
        )


def refuse_lost_writes(aim: AimModule, kind: Kind | None) -> None:
    """A carried state that eval-mode forwards write, in a file without state."""
    for memory in record_of(aim).plan.memories:
        if kind != "state" and memory.config.carry == "state" and memory.config.write_in_eval:
            raise lost_write(memory.name)


def refuse_other_reads(aim: AimModule) -> None:
    """Values of several memory sets as an input, where a set has read weights other than those of the set in use."""
    record = record_of(aim)
    reads = {name: DEFAULT if shared else name for name, shared in {DEFAULT: True, **record.sets}.items()}
    others = [name for name, owner in reads.items() if owner != reads[record.chosen]]
    if others:
        raise ExportError(
            f'memory="input": the file would hold the read weights of memory set {reads[record.chosen]!r} alone, and '
            f"the values of {', '.join(map(repr, others))} are trained with others: export a module that has one set, "
            f'aimgraph.load(folder, base) after aimgraph.save(aim, folder, memory_set="{record.chosen}"), or use sets '
            "that share their read weights, add_memory_set(..., share_reads=True)"
        )


def refuse_exposed(aim: AimModule, kind: Kind | None) -> None:
    """Memories that can't be inputs or states of a file."""
    if kind is not None:
        refuse_hooks(aim)
    if kind == "input":
        refuse_other_reads(aim)
    if kind == "state":
        refuse_mixed_rows(aim)


def refuse_mixed_rows(aim: AimModule) -> None:
    """A state with a row for each sample that starts where a layer can't tell the samples apart."""
    for memory in record_of(aim).plan.memories:
        if memory.updates and memory.config.pool is None and memory.config.carry != "state":
            for read in memory.reads:
                if any(call.value == 0 and not read.tells_rows(call) for call in read.calls if call.graph != "train"):
                    raise ExportError(
                        f"memory='state': {read.site} reads what memory {memory.name!r} starts with, and its input has "
                        "no row for every sample, while the state has: export with memory='inside', or transform with "
                        f"exclude=({read.site!r},), pool='batch' or carry='state'"
                    )


def refuse_hooks(aim: AimModule) -> None:
    """Hooks around a forward that takes memories and gives them."""
    if has_hooks(aim):
        raise ExportError(
            f"{record_of(aim).base_class.__name__} has hooks around its forward, which would be given memories among "
            "the inputs and outputs: export it as a constant, or let the forward do what the hooks do"
        )


def refuse_not_numbers(module: nn.Module) -> None:
    """Not-a-number in a weight, or in what the memory set in use holds.

    Buffers of the base may hold it as a mark of their own; see `refuse_blank_outputs`.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    wanted = ((key, value) for key, value in _in_use(module) if key in parameters or f".{AIM}." in f".{key}")
    if held := not_numbers(wanted):
        raise ExportError(f"not-a-number in {', '.join(held[:3])}: nothing that the file gives could be compared")


def _in_use(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module, without those of memory sets that are not in use."""
    state = state_tensors(module)
    unused: set[str] = set()
    for path, part in named_parts(module).items():
        prefix = f"{path}." if path else ""
        added = {key.removeprefix(prefix) for key in state if key.startswith(f"{prefix}{AIM}.")}
        default = {key for key in added if not key.startswith(f"{SETS}.")}
        used = {member(key, part, record_of(part).chosen) for key in default}
        unused |= {prefix + key for key in added - used}
    return ((key, value) for key, value in state.items() if key not in unused)


def refuse_blank_outputs(module: nn.Module, outputs: Sequence[Tensor]) -> None:
    """An output of torch that is not-a-number at every place: whatever the file gives can't be compared with it.

    Args:
        module: What gave them.
        outputs: Its outputs.
    """
    for index, output in enumerate(outputs):
        if output.numel() and nan_count(output) == output.numel():
            held = not_numbers(module.named_buffers())
            raise ExportError(
                f"in torch, output {index} is not-a-number at every place for random inputs, so that the file can't be "
                "compared with it" + (f"; not-a-number in {', '.join(held[:3])}" if held else "")
            )


def _named(call: OpaqueBase | OpaqueCall) -> str:
    """A module that is one call, as a message names it."""
    if call.path == OPAQUE_BASE:
        return "the model"
    return f"{call.path} ({type(call.aim_borrowed[0].get_submodule(call.path)).__name__})"


def deciding_parts(module: nn.Module) -> str:
    """A remark on the parts that decide by values, which an exporter can't follow; empty if none is known.

    Parts that are one call for another reason are named, too.
    """
    said: list[str] = []
    for part in module.modules():
        if isinstance(part, OpaqueBase | OpaqueCall):
            what = "can't be followed without values" if part.needs_values else "can't be traced"
            said.append(f"; {_named(part)} {what}: {part.reason}")
        if isinstance(part, AimModule | FoldedModule):
            inputs = record_of(part).inputs if isinstance(part, AimModule) else part._aim_inputs
            run = FakeRun(part, bound_arguments(part, random_inputs(inputs, 2, seed=0, own=True)))
            with suppress(Exception), quiet(), Outside(part).kept():  # only what is said besides depends on it
                run.run(part._graph)
            for path, error in (run.on_values or {}).items():
                kind = type(part.get_submodule(path)).__name__
                said.append(f"; {path} ({kind}) can't be followed without values: {reason_of(error)}")
    told = "".join(dict.fromkeys(said))
    return told and f"{told}; let it compute with torch.where and masks, or export what is before and after it"
