"""An ONNX file beside torch: the same inputs, the same memories, several batch sizes, several steps."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.distance import farthest, largest
from aimgraph.emit.module import AimModule
from aimgraph.emit.record import record_of
from aimgraph.errors import ExportError
from aimgraph.inputs.arguments import Arguments, tensors_in
from aimgraph.inputs.batch import batch_size, device_of, input_shapes, random_inputs
from aimgraph.inputs.samples import Samples, first_that_runs
from aimgraph.onnx.file import BATCH_SIZES, arrays_of
from aimgraph.onnx.prepare import Prepared, torch_steps
from aimgraph.onnx.refuse import refuse_blank_outputs
from aimgraph.torch_private import tree_leaves, tree_map

STEPS = 3
"""Steps that are compared where a file has state."""


Pair: TypeAlias = tuple[list[Tensor], list[Any]]
"""Outputs of torch, and of the file."""


Draw: TypeAlias = Callable[[int], Arguments]
"""Gives inputs of one batch size by a seed."""


class Comparison:
    """Compares a file with the module that it was made from.

    Args:
        aim: In eval mode.
        prepared: What was exported, in the module's own precision.
        inputs: Like the example.
        device: Where the module is.
        half: Whether the file is in half precision.
        sizes: Whether it takes other sizes.
    """

    def __init__(
        self, aim: nn.Module, prepared: Prepared, inputs: Samples, device: torch.device, *, half: bool, sizes: bool
    ) -> None:
        self.aim, self.prepared, self.inputs, self.device, self.half = aim, prepared, inputs, device, half
        self.others = [larger(aim, inputs.inputs, device)] if sizes else []
        self.shapes = tuple(tuple(input_shapes(one.inputs)[0][1:]) for one in (inputs, *self.others))
        self.states = prepared.memory == "state"

    def example(self) -> tuple[Any, list[Tensor]]:
        """What torch returns for `random_inputs` of the last batch size, and the states after that."""
        batch = self.inputs.sizes[-1]
        with torch.no_grad():
            args, kwargs = self.inputs.at(batch, batch, self.device)
            if not self.states:
                return self.aim(*args, **kwargs), []
            output, after = self.prepared.module(*self._initial(batch), *args, **kwargs)
            return output, list(after)

    def run(self, path: Path) -> tuple[float, float]:
        """Largest absolute and relative difference over all outputs, batch sizes and steps.

        Raises:
            ExportError: onnxruntime can't load or run the file, or the batch or a size is fixed in it, or torch gives
                nothing but not-a-number.
        """
        session = load_session(path)
        self._check_sizes(session)
        with torch.no_grad():
            return largest(self._distance(*pair) for pair in self._pairs(session))

    def unsteady(self) -> str:
        """What to say of a module that gives something else when it is called again; empty if it does not."""
        sample = self.inputs.at(self.inputs.sizes[0], 0, self.device)
        before = {name: buffer.clone() for name, buffer in self.aim.named_buffers()}
        with torch.no_grad():
            if not any(farthest(self._plain(sample), self._plain(sample))):
                return ""
        kept = [name for name, buffer in self.aim.named_buffers() if not torch.equal(buffer, before[name])]
        return (
            ". torch itself gives something else when the same inputs come again, because the model "
            f"{'writes ' + ', '.join(kept) if kept else 'draws or keeps something'} in eval mode, too, and a file does "
            "not: let it do so in train mode only"
        )

    def _distance(self, expected: list[Tensor], given: list[Any]) -> tuple[float, float]:
        refuse_blank_outputs(self.aim, expected)
        return farthest(given, expected)

    def _pairs(self, session: Any) -> Iterator[Pair]:
        pairs = self._steps if self.states else self._memories
        for one in (self.inputs, *self.others):
            for batch in self.inputs.sizes:
                draw = partial(one.at, batch, device=self.device)
                _check_batch(session.get_inputs(), arrays_of(draw(batch), half=self.half), batch)
                yield from pairs(session, draw, batch)
            if one.runs and not one.own:
                yield from pairs(session, partial(draw, own=True), batch)

    def _memories(self, session: Any, draw: Draw, batch: int) -> Iterator[Pair]:
        """With the initial values of the memories, then with others."""
        sample = draw(batch)
        values = self._initial(batch)
        yield self._plain(sample), self._run(session, sample, values)
        generator = torch.Generator().manual_seed(batch)
        for index, item in enumerate(self.prepared.exposed):
            rows = batch if item.rows == "any" else 1
            values[index] = values[index] + torch.randn(rows, item.values, generator=generator).to(self.device)
        if values:
            output = tensors_in(self.prepared.module(*values, *sample[0], **sample[1]))
            yield output, self._run(session, sample, values)

    def _steps(self, session: Any, draw: Draw, batch: int) -> Iterator[Pair]:
        carried = torch_steps(self.aim, self.prepared)
        values = theirs = self._initial(batch)
        for step in range(STEPS):
            here = draw(10 * batch + step)
            output, values = self._stepped(here, values)
            reference = tensors_in(carried(*here[0], **here[1])) if carried is not None else output
            given = self._run(session, here, theirs)
            theirs = given[len(output) :]
            yield [*reference, *values], given

    def _plain(self, sample: Arguments) -> list[Tensor]:
        return tensors_in(self.aim(*sample[0], **sample[1]))

    def _stepped(self, sample: Arguments, values: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        output, after = self.prepared.module(*values, *sample[0], **sample[1])
        return tensors_in(output), list(after)

    def _initial(self, batch: int) -> list[Any]:
        """The values that the exposed memories start with."""
        values = [(self.prepared.initial[item.memory], item.rows) for item in self.prepared.exposed]
        return [value.repeat(batch, 1) if rows == "batch" else value for value, rows in values]

    def _run(self, session: Any, sample: Arguments, memories: list[Any]) -> list[Any]:
        arrays = arrays_of((sample, memories), half=self.half)
        try:
            feeds = {item.name: array for item, array in zip(session.get_inputs(), arrays, strict=True)}
            found: list[Any] = session.run(None, feeds)
        except Exception as error:  # onnxruntime raises its own, undocumented classes
            shapes = [list(array.shape) for array in arrays]
            raise ExportError(f"onnxruntime can't run the exported graph on {shapes}: {error}") from error
        return found

    def _check_sizes(self, session: Any) -> None:
        """Say so where the exporter has fixed a size that was to vary."""
        for item in session.get_inputs() if self.others else ():
            if len(item.shape) > 2 and all(isinstance(size, int) for size in item.shape[2:]):
                raise ExportError(
                    f"the sizes of input {item.name!r} can't vary: the base's own computation fixes them at "
                    f"{item.shape[2:]}; export without dynamic_size"
                )


def samples_of(aim: nn.Module, inputs: Arguments) -> Samples:
    """Inputs like an example, at two batch sizes that a module takes: those that a file of it is compared at.

    Args:
        aim: In eval mode; a copy runs.
        inputs: The example.

    Raises:
        ExampleInputError: It runs at none that are tried.
    """
    batches = record_of(aim).batches if isinstance(aim, AimModule) else None

    def run(samples: Samples) -> None:
        module = copy_module(aim)
        with torch.no_grad():
            for batch in samples.sizes:
                args, kwargs = samples.at(batch, batch, device_of(aim))
                module(*args, **kwargs)

    return first_that_runs(aim, inputs, run, given=batches, usual=BATCH_SIZES)[0]


def load_session(path: Path) -> Any:
    """The file in onnxruntime.

    Raises:
        ExportError: It can't be loaded.
    """
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own, undocumented classes
        what = str(error).replace(str(path), path.name)  # a temporary one
        raise ExportError(f"onnxruntime can't load the exported graph: {what}") from error


def larger(module: nn.Module, inputs: Arguments, device: torch.device) -> Samples:
    """Inputs like example inputs of another size that the module runs on.

    Raises:
        ExportError: It runs on none of those tried.
    """
    size = batch_size(inputs)
    tried = []
    for change in (lambda n: n + 32, lambda n: 2 * n, lambda n: n + max(1, n // 2), lambda n: n + 1):

        def grown(leaf: Any, change: Any = change) -> Any:
            if not isinstance(leaf, Tensor) or leaf.dim() < 3 or leaf.shape[0] != size or not leaf.is_floating_point():
                return leaf
            return torch.empty((*leaf.shape[:2], *map(change, leaf.shape[2:])), dtype=leaf.dtype, device="meta")

        other: Arguments = tree_map(grown, inputs)
        args, kwargs = random_inputs(other, 1, seed=0, device=device)
        try:
            with torch.no_grad():
                module(*args, **kwargs)
        except Exception as error:  # whatever a model raises for a size that it does not take
            tried.append(f"{[list(leaf.shape) for leaf in tree_leaves(args)]}: {str(error).partition(chr(10))[0]:.100}")
            continue
        return Samples(other, runs=False, drawn=True)
    raise ExportError("dynamic_size: the model runs at no other size that was tried:\n  " + "\n  ".join(tried))


def _check_batch(declared: list[Any], feeds: list[Any], batch: int) -> None:
    """Say so where the exporter has fixed the batch size.

    Raises:
        ExportError: It has.
    """
    for item, feed in zip(declared, feeds, strict=False):
        if feed.ndim and feed.shape[0] == batch and isinstance(item.shape[0], int) and item.shape[0] != batch:
            raise ExportError(
                f"the exporter has fixed the batch size: input {item.name!r} takes {item.shape} only, whatever batch "
                "the model itself takes"
            )
