"""Which memory set is read: one for all samples, or one for each sample of a batch.

Graphs that run while another set than the default one is in use name what stands in its place at the moment, not the
set: `torch.compile` sees the same graph with other tensors, however many sets there are.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from aimgraph.compiler.aim_paths import AIM, DEFAULT, SETS, aim_path, below_aim, is_added
from aimgraph.compiler.graph_data import plain_copy
from aimgraph.copies import copy_module
from aimgraph.emit.record import IN_USE, record_of
from aimgraph.emit.set_names import check_known, member
from aimgraph.errors import ConfigError, ExampleInputError
from aimgraph.runtime.memory import Memory
from aimgraph.runtime.sources.samples import SampleSources
from aimgraph.torch_private import tree_flatten, tree_leaves, tree_unflatten

_Link = tuple[dict[str, Any], str, Any]


class InUse(nn.Module):
    """What stands in the place of ``aim`` while another set than the default one is in use. Nothing is owned by it.

    Args:
        aim: The transformed module.
        own: The set, or the samples' own values, in the same tree; what it does not have is the default one's.
        rows: Sample -> which of the sources, [B], where every sample has a set of its own.
    """

    def __init__(self, aim: nn.Module, own: nn.Module, rows: Tensor | None = None) -> None:
        super().__init__()
        self.rows = rows
        self.links: list[_Link] = []
        below = aim.get_submodule(AIM)
        self._follow(aim._modules, AIM)
        for name in below._modules:
            if name != below_aim(SETS):
                self.add_module(
                    name, self._filled(self._follow(below._modules, name), self._follow(own._modules, name))
                )

    def _follow(self, members: dict[str, Any], name: str) -> Any:
        self.links.append((members, name, members.get(name)))
        return members.get(name)

    def _filled(self, default: nn.Module, own: nn.Module | None) -> nn.Module:
        """`own`, with what `default` has besides."""
        if own is None:
            return default
        pairs = ((name, self._follow(default._modules, name)) for name in default._modules)
        joined = {name: self._filled(child, self._follow(own._modules, name)) for name, child in pairs}
        if all(own._modules.get(name) is child for name, child in joined.items()):
            return own
        made = type(own).__new__(type(own))
        vars(made).update(vars(own), _modules=joined)
        return made

    def is_right(self) -> bool:
        """Whether all that stands here still stands where it was taken from."""
        return all(members.get(name) is child for members, name, child in self.links)


def put_in_use(aim: nn.Module, names: str | Sequence[str]) -> None:
    """Note which set, or which set for each sample, is in use from now on."""
    record = record_of(aim)
    if not isinstance(names, Sequence):
        raise ConfigError(f"{names!r} is no name of a memory set, and no list of names, one for every sample")
    check_known(record, [names] if isinstance(names, str) else names)
    if not names:
        raise ConfigError("using() takes the name of a memory set, or one for every sample of the batch: none is given")
    if isinstance(names, str):
        record.chosen, record.samples, record.by_sample = names, None, False
    else:
        record.samples, record.by_sample = tuple(names), True
    vars(aim).pop(IN_USE, None)


def in_use(aim: nn.Module) -> nn.Module:
    """What stands for ``aim`` in the set in use, or in the sets of the samples, if one forward can serve them."""
    there: InUse | None = vars(aim).get(IN_USE)
    if there is None or not there.is_right():
        there = _made(aim)
        if there is None:
            return aim.get_submodule(AIM)
        vars(aim)[IN_USE] = there
    return there


def _made(aim: nn.Module) -> InUse | None:
    record = record_of(aim)
    if record.samples is not None and _batched(aim, record.samples):
        return _of_samples(aim, record.samples)
    return InUse(aim, aim.get_submodule(f"{SETS}.{record.chosen}")) if record.chosen != DEFAULT else None


def _batched(aim: nn.Module, names: Iterable[str]) -> bool:
    """Whether one forward can serve samples of these sets: shared read weights, and a row each."""
    record = record_of(aim)
    shared = all(name == DEFAULT or record.sets[name] for name in names)
    return shared and all(memory.reads_rows for memory in record.plan.memories)


def _of_samples(aim: nn.Module, names: Sequence[str]) -> InUse:
    """Every sample's own values. Their sources are made up to a power of two, for the sake of `torch.compile`."""
    distinct = list(dict.fromkeys(names))
    more = (1 << (len(distinct) - 1).bit_length()) - len(distinct)
    rows = torch.tensor([distinct.index(name) for name in names])
    own = nn.Module()
    for memory in record_of(aim).plan.memories:
        path = aim_path(memory.name, "source")
        sources = [aim.get_submodule(member(path, aim, name)) for name in distinct]
        sources += [copy_module(sources[-1]) for _ in range(more)]
        own.add_module(memory.name, Memory(SampleSources(tuple(sources), rows)))
    return InUse(aim, own, rows)


def graphs_in_use(graphs: dict[str, fx.Graph]) -> dict[str, fx.Graph]:
    """The default set's graphs with the names of what stands in its place."""
    made = {}
    for key, graph in graphs.items():
        kind, _, mode = key.partition(".")
        if kind == AIM:
            made[f"{IN_USE}.{mode}"] = copied = plain_copy(graph)
            for node in copied.nodes:
                if node.op in ("call_module", "get_attr") and is_added(str(node.target)):
                    node.target = f"{IN_USE}.{below_aim(str(node.target))}"
    return made


def run_by_sample(forward: Any, aim: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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
    record = record_of(aim)
    there = vars(aim).get(IN_USE)
    rows = there.rows if there is not None else None
    count = rows.shape[0] if rows is not None else len(record.samples or ())  # compiled: the same for other names
    sizes = (leaf.shape[0] for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim())
    size = next(sizes, None)
    if size != count:
        raise ExampleInputError(
            f"using() names {count} memory sets, one for every sample, and this batch has "
            f"{'no samples' if size is None else size}"
        )
    if not record.enabled or rows is not None:
        return forward(aim, *args, **kwargs)
    return _run_set_by_set(aim, record.samples or (), args, kwargs)


def _run_set_by_set(aim: Any, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaves, structure = tree_flatten((args, kwargs))
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        groups.setdefault(name, []).append(row)
    outputs = []
    for name, rows in groups.items():
        mine = [
            leaf[torch.tensor(rows, device=leaf.device)] if _has_rows(leaf, len(names)) else leaf for leaf in leaves
        ]
        part_args, part_kwargs = tree_unflatten(mine, structure)
        with aim.using(name):
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


def _has_rows(value: Any, count: int) -> bool:
    """Whether `value` is a tensor with a row for each of `count` samples."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == count


def _rows(parts: tuple[Any, ...], counts: list[int], places: Tensor) -> Any:
    if all(map(_has_rows, parts, counts)):
        return torch.cat(parts)[places.to(parts[0].device)]
    if not any(isinstance(part, Tensor) for part in parts) and all(part == parts[0] for part in parts):
        return parts[0]
    shapes = [list(part.shape) if isinstance(part, Tensor) else part for part in parts]
    raise ExampleInputError(
        f"an output has no row for every sample (of {counts} samples it is {shapes}): run one memory set at a time"
    )
