"""What the outputs of a file are called: as the base names them, wherever the memory is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from aimgraph.errors import ConfigError
from aimgraph.inputs.arguments import tensors_in
from aimgraph.runtime.memory import free_name

OUTPUT = "output"
"""What an output without a name is called; several are ``output_0``, ``output_1``, ..."""


def names_of(output: Any, asked: Sequence[str] | None = None) -> list[str]:
    """A name for every tensor of an output, in the order in which a file has them.

    Keys of dicts and fields of dataclasses and named tuples are names; a part of a list or tuple has its number behind
    the name of the whole.

    Args:
        output: What a forward returned.
        asked: Names to give them instead.

    Raises:
        ConfigError: Another number of names is asked for, or one twice.
    """
    tensors = tensors_in(output)
    if asked is not None:
        if isinstance(asked, str) or len(asked) != len(tensors) or len({*asked}) != len(asked):
            raise ConfigError(
                f"output_names={asked!r}: the model has {len(tensors)} outputs, by default {names_of(output)}; "
                "give a list of as many different names"
            )
        return list(asked)
    found = list(_named(output, ()))
    if [id(tensor) for _, tensor in found] != [id(tensor) for tensor in tensors]:  # another order, or another container
        known = {id(tensor): path for path, tensor in found}
        found = [(known.get(id(tensor), (str(index),)), tensor) for index, tensor in enumerate(tensors)]
    names: list[str] = []
    for path, _ in found:
        whole = () if path and not path[0].isdigit() else (OUTPUT,)
        name = OUTPUT if whole and len(found) == 1 else "_".join((*whole, *path))
        names.append(free_name(name, lambda one: one not in names))
    return names


def _named(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """The tensors of an output, each with the keys and numbers that lead to it."""
    if isinstance(value, Tensor):
        yield path, value
        return
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif is_dataclass(value) and not isinstance(value, type):
        items = ((field.name, getattr(value, field.name)) for field in fields(value))
    elif isinstance(value, list | tuple):
        items = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    for key, item in items:
        yield from _named(item, (*path, str(key)))


def name_outputs(graph: Any, names: Sequence[str], *, chosen: bool) -> None:
    """Give the first outputs of a graph their names.

    A value that the graph is given, or that is an output twice, goes through ``Identity`` first: it has a name already.

    Args:
        graph: Of the file.
        names: For its first outputs.
        chosen: Whether the user asked for them.

    Raises:
        ConfigError: A name that was asked for is that of an input, a weight or a memory.
    """
    from onnxscript import ir  # whichever package the exporter of this torch has it from

    given = [*graph.inputs, *graph.initializers.values()]
    taken = {value.name for value in (*given, *graph.outputs[len(names) :])}
    if chosen and (clash := taken.intersection(names)):
        raise ConfigError(f"output_names: {sorted(clash)[0]!r} is the name of an input, a weight or a memory already")
    seen = {id(value) for value in (*given, *graph.outputs[len(names) :])}
    values = []
    for index, value in enumerate(graph.outputs[: len(names)]):
        if id(value) in seen:
            node = ir.node("Identity", [value])
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        values.append(graph.outputs[index])
        seen.add(id(values[-1]))
    wanted = [free_name(name, lambda one: one not in taken) for name in names]
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.name in wanted:
                value.name = f"{value.name}_inside"
    for value, name in zip(values, wanted, strict=True):
        value.name = name
