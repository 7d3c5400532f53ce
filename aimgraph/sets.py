"""Memory sets: several memories of the same make around one base, one of which is in use, or one for each sample.

The set that a transform makes is called ``default`` and keeps its names. Every other one lives under ``aim.sets.<set>``
in the same tree; the graphs are copied with its names in place of the default ones, so that a set costs nothing at run
time, and no parameter ever changes its name or its place in the order.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from aimgraph.compiler.graph_data import plain_copy
from aimgraph.compiler.node_keys import AIM, DEFAULT, LEAVES
from aimgraph.copies import copy_module
from aimgraph.errors import ConfigError, ExampleInputError
from aimgraph.plan import MemoryPlan, Read
from aimgraph.reproducible import own_stream
from aimgraph.runtime.function import FunctionRead
from aimgraph.runtime.layers import AffineLayer, read_weight
from aimgraph.runtime.leaf import MemoryLeaf
from aimgraph.runtime.memory import Memory, put_module
from aimgraph.runtime.source import OnesConvSource, ParameterSource, SampleSources
from aimgraph.runtime.state import StateCarry

if TYPE_CHECKING:
    from aimgraph.module import AimModule

SAMPLES = "*"
"""Stands for the graph in which every sample has a set of its own."""

_SETS = f"{AIM}.sets"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def add_set(
    aim: "AimModule", name: str, *, share_reads: bool = False, like: str | None = None, filled: bool = False
) -> None:
    """See `AimModule.add_memory_set`; `filled` says that all values are still to come."""
    record = aim._record
    _check_name(name, [DEFAULT, *record.sets])
    if record.widened:
        raise ConfigError(
            f"memory set {name!r}: read weights are part of widened weights in concat form "
            f'({record.widened[0].site}): transform with lowering="split"; the state dict of this module loads into it'
        )
    if like is not None:
        check_known(record, [like])
    if share_reads:
        _check_shareable(aim, name, filled=filled)
    made = nn.Module()
    for memory in record.plan.memories:
        made.add_module(memory.name, _new_memory(aim, memory, name, share_reads=share_reads, like=like))
    put_module(aim, f"{_SETS}.{name}", made)
    if not share_reads:
        _add_leaves(aim, name)
    else:
        for memory in record.plan.memories:
            aim.get_submodule(f"{AIM}.{memory.name}.reads").requires_grad_(False)
    record.sets[name] = share_reads
    made.train(aim.training)


def _check_name(name: str, taken: Sequence[str]) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"memory set {name!r}: a set's name is a letter followed by letters, digits or '_'")
    if hasattr(nn.Module(), name):
        raise ConfigError(f"memory set {name!r}: every torch.nn.Module has a member of that name")
    if name in taken:
        raise ConfigError(f"memory set {name!r} is there already; the sets are {list(taken)}")


def check_known(record: Any, names: Iterable[str]) -> None:
    """Refuse names of sets that there are not."""
    known = [DEFAULT, *record.sets]
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no memory set {name!r}; the sets are {known}")


def _check_shareable(aim: "AimModule", name: str, *, filled: bool) -> None:
    for memory in aim._record.plan.memories:
        if memory.updates:
            raise ConfigError(
                f"memory set {name!r}: share_reads=True shares the weights of reads, and memory {memory.name!r} has "
                "updates, which have weights and statistics of their own: leave share_reads out"
            )
        reads = aim.get_submodule(f"{AIM}.{memory.name}.reads")
        if not filled and not any(bool(weight.any()) for weight in reads.parameters()):
            raise ConfigError(
                f"memory set {name!r}: the read weights of memory {memory.name!r} are all zero, so that no values "
                "would change anything, and none could be trained with the read weights frozen: train the default set "
                'first, or transform with init="default"'
            )


def _new_memory(aim: "AimModule", memory: MemoryPlan, name: str, *, share_reads: bool, like: str | None) -> Memory:
    """A memory like the default one; its values are fresh, or those of the set `like`."""
    old = aim.get_submodule(f"{AIM}.{memory.name}" if like is None else member(f"{AIM}.{memory.name}", aim, like))
    assert isinstance(old, Memory)
    if share_reads:
        return Memory(copy_module(old.source).requires_grad_(True))
    made: Memory = copy_module(old)
    default = aim.get_submodule(f"{AIM}.{memory.name}")
    assert isinstance(default, Memory)
    if like is not None and aim._record.sets.get(like):
        made.reads = copy_module(default.reads)
    made.requires_grad_(True)
    if like is None:
        with torch.no_grad(), own_stream(f"{memory.config.seed}/{memory.name}/set {name}"):
            _draw(aim, memory, made)
    return made


def _draw(aim: "AimModule", memory: MemoryPlan, made: Memory) -> None:
    """Values as a transform gives them to a new memory."""
    assert isinstance(made.source, ParameterSource | OnesConvSource)
    made.source.reset_parameters()
    for read in memory.reads:
        layer = made.reads.get_submodule(read.name)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        weight.copy_(_read_weight(aim, read, layer, memory.config.init).to(weight))
    for module in made.updates.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    for module in made.children():
        if isinstance(module, StateCarry):
            module.reset()


def _read_weight(aim: "AimModule", read: Read, layer: nn.Module, init: str) -> Tensor:
    if isinstance(layer, FunctionRead):
        return torch.empty(layer.weight.shape).uniform_(-layer.bound, layer.bound)
    site = aim.get_submodule(read.site)
    assert isinstance(site, AffineLayer)
    return read_weight(site, read.channels, init)


def _add_leaves(aim: "AimModule", name: str) -> None:
    """Modules that are kept as one call, reading the set's weights."""
    there = aim._modules[AIM]
    assert there is not None
    own = {}
    for memory in aim._record.plan.memories:
        for path, module in aim.get_submodule(f"{AIM}.{memory.name}.reads").named_modules():
            own[id(module)] = aim.get_submodule(f"{_SETS}.{name}.{memory.name}.reads{'.' + path if path else ''}")
    for path, leaf in list(there.named_modules()):
        if isinstance(leaf, MemoryLeaf) and not path.startswith("sets."):
            reads = tuple(replace(read, read=own[id(read.read)]) for read in leaf.reads)
            root = leaf.aim_borrowed[0]
            put_module(
                aim,
                f"{_SETS}.{name}.{path}",
                MemoryLeaf(root, leaf.path, reads, leaf.layers, needs_values=leaf.needs_values),
            )


def remove_set(aim: "AimModule", name: str) -> None:
    """See `AimModule.remove_memory_set`."""
    record = aim._record
    if name == DEFAULT:
        raise ConfigError("the default memory set can't be removed: aimgraph.strip gives the base back")
    check_known(record, [name])
    if name == record.chosen or name in (record.samples or ()):
        raise ConfigError(f"memory set {name!r} is in use: use another one first")
    sets = aim.get_submodule(_SETS)
    del sets._modules[name]
    del record.sets[name]
    record.set_graphs.pop(name, None)
    for key in [key for key in record.compiled if key.startswith(f"aim:{name}.")]:
        del record.compiled[key]
    if not record.sets:
        del aim.get_submodule(AIM)._modules["sets"]


def use_set(aim: "AimModule", names: str | Sequence[str]) -> None:
    """Let a set, or a set for each sample, be the one in use."""
    record = aim._record
    chosen = [names] if isinstance(names, str) else list(names)
    check_known(record, chosen)
    if not chosen:
        raise ConfigError("using() takes the name of a memory set, or one for every sample of the batch: none is given")
    if isinstance(names, str):
        record.chosen, record.samples = names, None
        if record.sets:
            aim.get_submodule(_SETS)._modules.pop(SAMPLES, None)
    else:
        record.samples = tuple(chosen)
        if batched(aim, chosen):
            _put_samples(aim, chosen)
    aim._select()


@contextmanager
def using_set(aim: "AimModule", names: str | Sequence[str]) -> Iterator["AimModule"]:
    """See `AimModule.using`."""
    record = aim._record
    before = record.samples or record.chosen
    chosen = record.chosen
    use_set(aim, names)
    try:
        yield aim
    finally:
        record.chosen, record.samples = chosen, None
        use_set(aim, before)


def own_parameters(aim: "AimModule", name: str) -> list[nn.Parameter]:
    """The parameters of a set, without those that it shares."""
    check_known(aim._record, [name])
    there = aim.get_submodule(AIM if name == DEFAULT else f"{_SETS}.{name}")
    return [
        parameter for memory in aim._record.plan.memories for parameter in there.get_submodule(memory.name).parameters()
    ]


def member(path: str, aim: nn.Module, name: str) -> str:
    """What stands for ``aim.<...>`` in a set: its own, or the default one that it shares."""
    own = f"{_SETS}.{name}.{path.removeprefix(f'{AIM}.')}"
    return own if name != DEFAULT and _has(aim, own) else path


def _has(root: nn.Module, path: str) -> bool:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            return False
        root = root.get_submodule(parent)
    return name in root._modules or name in root._parameters or name in root._buffers


def present_member(path: str, aim: "AimModule") -> str:
    """The same for the set in use."""
    return member(path, aim, aim._record.chosen)


def graphs_of(aim: "AimModule", name: str) -> dict[str, fx.Graph]:
    """The default graphs with the names of a set, or of the samples' own values."""
    made = {}
    for mode, graph in aim._record.graphs.items():
        copied = plain_copy(graph)
        for node in copied.nodes:
            if node.op in ("call_module", "get_attr") and str(node.target).startswith(f"{AIM}."):
                node.target = member(str(node.target), aim, name)
        made[mode] = copied
    return made


def settled(aim: "AimModule") -> "AimModule":
    """A copy in which the set in use is the only one, under the default names.

    Raises:
        ConfigError: Every sample has its own.
    """
    record = aim._record
    if record.samples is not None:
        raise ConfigError("every sample has a memory set of its own: do this outside of using(), with one set in use")
    made: AimModule = copy_module(aim)
    if not record.sets:
        return made
    own = made.get_submodule(f"{_SETS}.{record.chosen}") if record.chosen != DEFAULT else nn.Module()
    there = made.get_submodule(AIM)
    del there._modules["sets"]
    for memory in record.plan.memories:
        if memory.name in own._modules:
            mine, default = own.get_submodule(memory.name), there.get_submodule(memory.name)
            if record.sets[record.chosen]:
                mine.reads = default.reads
            there._modules[memory.name] = mine
    leaves = LEAVES.removeprefix(f"{AIM}.")
    if leaves in own._modules:
        there._modules[leaves] = own._modules[leaves]
    made._record.sets, made._record.set_graphs, made._record.chosen = {}, {}, DEFAULT
    made._record.compiled = {name: one for name, one in made._record.compiled.items() if not name.startswith("aim:")}
    made._select()
    return made


def batched(aim: "AimModule", names: Iterable[str]) -> bool:
    """Whether one forward can serve samples of these sets: shared read weights, and a row each."""
    record = aim._record
    return (
        record.enabled
        and all(name == DEFAULT or record.sets[name] for name in names)
        and all(reads_rows(memory) for memory in record.plan.memories)
    )


def reads_rows(memory: MemoryPlan) -> bool:
    """Whether every read of a memory without updates could tell the samples apart."""
    return not memory.updates and all(
        call.batch_ratio == 1 and call.spec.batch_axis is not None and not call.folded
        for read in memory.reads
        for call in read.calls
    )


def _put_samples(aim: "AimModule", names: Sequence[str]) -> None:
    distinct = list(dict.fromkeys(names))
    rows = torch.tensor([distinct.index(name) for name in names])
    for memory in aim._record.plan.memories:
        path = f"{AIM}.{memory.name}.source"
        sources = tuple(aim.get_submodule(member(path, aim, name)) for name in distinct)
        put_module(aim, f"{_SETS}.{SAMPLES}.{memory.name}.source", SampleSources(sources, rows))


def run_by_sample(forward: Any, aim: "AimModule", args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `aim` gives where every sample has its own set.

    One forward for sets that share the read weights; otherwise one for each set, on its samples.

    Args:
        forward: Of the graph in which the samples have their own values, if there is one.
        aim: The transformed module.
        args: Of the call.
        kwargs: Of the call.

    Raises:
        ExampleInputError: There are not as many samples as names, or the outputs can't be told apart by sample.
    """
    record = aim._record
    names = record.samples
    assert names is not None
    leaves, structure = tree_flatten((args, kwargs))
    size = next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), None)
    if size != len(names):
        raise ExampleInputError(
            f"using() names {len(names)} memory sets, one for every sample, and this batch has "
            f"{'no samples' if size is None else size}"
        )
    if not record.enabled or batched(aim, names):
        return forward(aim, *args, **kwargs)
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        groups.setdefault(name, []).append(row)
    outputs = []
    for name, rows in groups.items():
        mine = [
            leaf[torch.tensor(rows, device=leaf.device)]
            if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size
            else leaf
            for leaf in leaves
        ]
        part_args, part_kwargs = tree_unflatten(mine, structure)
        with using_set(aim, name):
            outputs.append(type(aim).forward(aim, *part_args, **part_kwargs))
    order = [row for rows in groups.values() for row in rows]
    return _joined(outputs, [len(rows) for rows in groups.values()], order)


def _joined(outputs: list[Any], counts: list[int], order: list[int]) -> Any:
    """The outputs of the groups as the output of one batch, its samples in order."""
    if len(outputs) == 1:
        return outputs[0]
    flat, structures = zip(*(tree_flatten(output) for output in outputs), strict=True)
    if any(structure != structures[0] for structure in structures):
        raise ExampleInputError("the outputs of the samples' memory sets differ in kind: run one set at a time")
    places = torch.tensor(order).argsort()
    return tree_unflatten([_rows(parts, counts, places) for parts in zip(*flat, strict=True)], structures[0])


def _rows(parts: tuple[Any, ...], counts: list[int], places: Tensor) -> Any:
    if all(
        isinstance(part, Tensor) and part.dim() and part.shape[0] == n for part, n in zip(parts, counts, strict=True)
    ):
        return torch.cat(parts)[places.to(parts[0].device)]
    if not any(isinstance(part, Tensor) for part in parts) and all(part == parts[0] for part in parts):
        return parts[0]
    shapes = [list(part.shape) if isinstance(part, Tensor) else part for part in parts]
    raise ExampleInputError(
        f"an output has no row for every sample (of {counts} samples it is {shapes}): run one memory set at a time"
    )
