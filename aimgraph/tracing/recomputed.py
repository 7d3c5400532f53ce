"""Buffers that activation checkpointing writes twice: in the forward, and where the backward pass runs it once more."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from aimgraph.errors import TraceError
from aimgraph.fake.operations import HELD, Operation, Recorder, Source, is_in_place
from aimgraph.runtime.call_names import CallNames
from aimgraph.runtime.recompute import checkpoints_entered
from aimgraph.torch_private import operator_named

_BATCH_NORM = "aten.native_batch_norm.default"
"""It writes the statistics that it is given in train mode, and its schema does not say so."""


@contextmanager
def recomputations_watched(
    module: nn.Module, recorder: Recorder, names: CallNames, found: dict[str, None]
) -> Iterator[None]:
    """Note modules whose forward checkpoints something that writes buffers; no graph writes them a second time.

    Args:
        module: What runs, on fake tensors.
        recorder: Lists its operations.
        names: Knows which module's forward runs.
        found: Where the paths of such modules go.
    """
    buffers = {source for one in module.buffers() if (source := recorder.known.get(id(one))) is not None}

    @contextmanager
    def region() -> Iterator[None]:
        start, inside, path = len(recorder.operations), names.opaque is not None, names.path
        yield
        if not inside and any(_writes(one, recorder.operations, buffers) for one in recorder.operations[start:]):
            found[path] = None

    with checkpoints_entered(lambda: None, region):
        yield


def written_again(paths: Iterable[str]) -> tuple[str, TraceError] | None:
    """The first module that is noted, and why it can't be traced; None if there is none."""
    path = next(iter(paths), None)
    if path is None:
        return None
    return path, TraceError(
        "activation checkpointing runs what writes buffers once more in the backward pass, and a graph writes them once"
    )


def _writes(operation: Operation, before: list[Operation], buffers: set[Source]) -> bool:
    if operation.name == _BATCH_NORM:
        return operation.constants[:1] == (True,) and not buffers.isdisjoint(operation.sources)
    source = operation.sources[0] if is_in_place(operation.name) and operation.sources else None
    while source is not None and source[0] != HELD and _is_view(before[source[0]].name):
        source = before[source[0]].sources[0]
    return source in buffers


def _is_view(name: str) -> bool:
    """Whether an operation gives its first argument, or a view of it."""
    schema: Any = getattr(operator_named(name), "_schema", None)
    return schema is not None and any(one.alias_info is not None for one in schema.returns)
