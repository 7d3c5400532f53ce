"""Which memory set is read: one for all samples, or one for each sample of a batch."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.compiler.aim_paths import DEFAULT, SETS, aim_path
from aimgraph.emit.record import record_of
from aimgraph.emit.set_names import check_known, member
from aimgraph.errors import ConfigError, ExampleInputError
from aimgraph.runtime.memory import put_module
from aimgraph.runtime.sources.samples import SampleSources
from aimgraph.torch_private import tree_flatten, tree_unflatten

SAMPLES = "*"
"""Stands for the graph in which every sample has a set of its own."""


def put_in_use(aim: nn.Module, names: str | Sequence[str]) -> None:
    """Note which set, or which set for each sample, is in use from now on."""
    record = record_of(aim)
    chosen = [names] if isinstance(names, str) else list(names)
    check_known(record, chosen)
    if not chosen:
        raise ConfigError("using() takes the name of a memory set, or one for every sample of the batch: none is given")
    if isinstance(names, str):
        record.chosen, record.samples = names, None
        if record.sets:
            aim.get_submodule(SETS)._modules.pop(SAMPLES, None)
    else:
        record.samples = tuple(chosen)
        if batched(aim, chosen):
            _put_samples(aim, chosen)


def batched(aim: nn.Module, names: Iterable[str]) -> bool:
    """Whether one forward can serve samples of these sets: shared read weights, and a row each."""
    record = record_of(aim)
    return (
        record.enabled
        and all(name == DEFAULT or record.sets[name] for name in names)
        and all(memory.reads_rows for memory in record.plan.memories)
    )


def _put_samples(aim: nn.Module, names: Sequence[str]) -> None:
    distinct = list(dict.fromkeys(names))
    rows = torch.tensor([distinct.index(name) for name in names])
    for memory in record_of(aim).plan.memories:
        path = aim_path(memory.name, "source")
        sources = tuple(aim.get_submodule(member(path, aim, name)) for name in distinct)
        put_module(aim, f"{SETS}.{SAMPLES}.{memory.name}.source", SampleSources(sources, rows))


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
        mine = [leaf[torch.tensor(rows, device=leaf.device)] if _has_rows(leaf, size) else leaf for leaf in leaves]
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
