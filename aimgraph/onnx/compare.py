"""An ONNX file beside torch: the same inputs, the same memories, several batch sizes, several steps."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aimgraph.api.verify import tensors_in
from aimgraph.distance import farthest, largest
from aimgraph.errors import ExportError
from aimgraph.inputs.arguments import Arguments
from aimgraph.inputs.batch import batch_size, random_inputs
from aimgraph.onnx.file import BATCH_SIZES, told
from aimgraph.onnx.prepare import Prepared, torch_steps
from aimgraph.torch_private import tree_leaves, tree_map

STEPS = 3
"""Steps that are compared where a file has state."""


@dataclass(frozen=True)
class Case:
    """One run of a file.

    Attributes:
        inputs: (args, kwargs).
        memories: One value for each exposed memory.
        first: Whether the memories have their initial values.
    """

    inputs: Arguments
    memories: tuple[Tensor, ...]
    first: bool


class Comparison:
    """Compares a file with the module that it was made from.

    Args:
        aim: In eval mode.
        prepared: What was exported, in the module's own precision.
        inputs: Example inputs.
        device: Where the module is.
        half: Whether the file is in half precision.
        sizes: Whether it takes other sizes.
    """

    def __init__(
        self, aim: nn.Module, prepared: Prepared, inputs: Arguments, device: torch.device, *, half: bool, sizes: bool
    ) -> None:
        self.aim, self.prepared, self.inputs, self.device = aim, prepared, inputs, device
        self.half = half
        self.others = [larger(aim, inputs, device)] if sizes else []
        self.shapes = tuple(
            tuple(next(leaf for leaf in tree_leaves(one) if isinstance(leaf, Tensor)).shape[1:])
            for one in (inputs, *self.others)
        )
        self.states = any(item.kind == "state" for item in prepared.exposed)

    def expected(self) -> list[dict[str, Any]]:
        """What torch gives for `random_inputs` of the last batch size, in a few values of every output."""
        batch = BATCH_SIZES[-1]
        sample = random_inputs(self.inputs, batch, seed=batch, device=self.device)
        memories = tuple(self._initial(item, batch) for item in self.prepared.exposed)
        return [told(output) for output in self._reference(Case(sample, memories, first=True))]

    def run(self, path: Path) -> tuple[float, float]:
        """Largest absolute and relative difference over all outputs, batch sizes and steps.

        Raises:
            ExportError: onnxruntime can't load or run the file, or the batch or a size is fixed in it.
        """
        session = load_session(path)
        count = len(self.prepared.exposed)
        declared = session.get_inputs()
        self._check_sizes(declared[: len(declared) - count])
        with torch.no_grad():
            return largest(farthest(given, expected) for expected, given in self._pairs(session, declared))

    def _pairs(self, session: Any, declared: list[Any]) -> Iterator[tuple[list[Tensor], list[Any]]]:
        for one in (self.inputs, *self.others):
            for batch in BATCH_SIZES:
                sample = random_inputs(one, batch, seed=batch, device=self.device)
                _check_batch(declared, _feeds(sample), batch)
                if self.states:
                    yield from self._steps(session, declared, sample, batch)
                    continue
                for case in self._cases(sample, batch):
                    given = self._run(session, declared, case.inputs, [_array(value) for value in case.memories])
                    yield self._reference(case), given

    def _cases(self, sample: Arguments, batch: int) -> Iterator[Case]:
        exposed = self.prepared.exposed
        yield Case(sample, tuple(self._initial(item, batch) for item in exposed), first=True)
        if exposed:
            generator = torch.Generator().manual_seed(batch)
            rows = [batch if item.rows == "any" else 1 for item in exposed]
            drawn = (
                self._initial(item, batch) + torch.randn(count, item.values, generator=generator).to(self.device)
                for item, count in zip(exposed, rows, strict=True)
            )
            yield Case(sample, tuple(drawn), first=False)

    def _steps(
        self, session: Any, declared: list[Any], sample: Arguments, batch: int
    ) -> Iterator[tuple[list[Tensor], list[Any]]]:
        carried = torch_steps(self.aim, self.prepared)
        values = tuple(self._initial(item, batch) for item in self.prepared.exposed)
        theirs = [_array(value) for value in values]
        for step in range(STEPS):
            here = random_inputs(sample, batch, seed=10 * batch + step, device=self.device)
            output, values = self._stepped(here, values)
            reference = tensors_in(carried(*here[0], **here[1])) if carried is not None else output
            given = self._run(session, declared, here, theirs)
            theirs = given[len(output) :]
            yield [*reference, *values], given

    def _stepped(self, sample: Arguments, values: tuple[Tensor, ...]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        output, after = self.prepared.module(*values, *sample[0], **sample[1])
        return tensors_in(output), after

    def _reference(self, case: Case) -> list[Tensor]:
        args, kwargs = case.inputs
        with torch.no_grad():
            if self.states:
                output, after = self._stepped(case.inputs, case.memories)
                return [*output, *after]
            if case.first:
                return tensors_in(self.aim(*args, **kwargs))
            return tensors_in(self.prepared.module(*case.memories, *args, **kwargs))

    def _initial(self, item: Any, batch: int) -> Tensor:
        value = self.prepared.initial[item.memory]
        return value.repeat(batch, 1) if item.rows == "batch" else value

    def _run(self, session: Any, declared: list[Any], sample: Arguments, memories: list[Any]) -> list[Any]:
        arrays = [*_feeds(sample), *memories]
        if self.half:
            arrays = [
                array.astype(np.float16) if np.issubdtype(array.dtype, np.floating) else array for array in arrays
            ]
        try:
            found: list[Any] = session.run(None, dict(zip([item.name for item in declared], arrays, strict=True)))
        except Exception as error:  # onnxruntime raises its own, undocumented classes
            shapes = [list(array.shape) for array in arrays]
            raise ExportError(f"onnxruntime can't run the exported graph on {shapes}: {error}") from error
        return found

    def _check_sizes(self, declared: list[Any]) -> None:
        """Say so where the exporter has fixed a size that was to vary."""
        for item in declared if self.others else ():
            if len(item.shape) > 2 and all(isinstance(size, int) for size in item.shape[2:]):
                raise ExportError(
                    f"the sizes of input {item.name!r} can't vary: the base's own computation fixes them at "
                    f"{item.shape[2:]}; export without dynamic_size"
                )


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


def larger(module: nn.Module, inputs: Arguments, device: torch.device) -> Arguments:
    """Example inputs of another size that the module runs on.

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
            tried.append(f"{[list(leaf.shape) for leaf in tree_leaves(args)]}: {str(error).splitlines()[0]:.100}")
            continue
        return other
    raise ExportError("dynamic_size: the model runs at no other size that was tried:\n  " + "\n  ".join(tried))


def _feeds(sample: Arguments) -> list[Any]:
    return [_array(leaf) for leaf in tree_leaves(sample) if isinstance(leaf, Tensor)]


def _array(value: Tensor) -> Any:
    return value.detach().cpu().numpy()


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
