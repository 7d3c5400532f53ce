"""ONNX export, checked against onnxruntime before the file is put in place."""

import collections
import contextlib
import inspect
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from aimgraph.arguments import Arguments
from aimgraph.errors import ExportError
from aimgraph.fold import FoldedModule
from aimgraph.frontend import batch_size
from aimgraph.inputs import random_inputs, resolve_inputs
from aimgraph.module import AimModule
from aimgraph.surgery import strip
from aimgraph.verify import tensors_in

TOLERANCE = 1e-4
"""Largest max|d| / max|y| between torch and onnxruntime that an exported file may show."""

BATCH_SIZES = (1, 3)
"""Batch sizes at which the file is compared; neither is the one it is exported at."""

_EXPORTED_AT = 2


@dataclass(frozen=True)
class OnnxReport:
    """What was written and how well it agrees.

    Attributes:
        path: The file.
        bytes: Its size, external data included.
        opset: ONNX opset.
        operators: Operator -> how many nodes.
        batch_sizes: Where it was compared.
        max_difference: Largest |torch - onnxruntime| over outputs and batch sizes.
        relative_difference: The same over max |torch|.
    """

    path: str
    bytes: int
    opset: int
    operators: dict[str, int]
    batch_sizes: tuple[int, ...]
    max_difference: float
    relative_difference: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def export_onnx(
    aim: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    opset: int | None = None,
    optimize: bool | None = None,
    tolerance: float = TOLERANCE,
) -> OnnxReport:
    """Write the eval-mode computation of `aim` to an ONNX file with a dynamic batch.

    The file is compared with torch in onnxruntime at two batch sizes first, and only then put in
    place: an existing file survives every failure.

    Args:
        aim: A transformed or folded module, or any module torch can export. Its mode is kept. With its
            memory disabled, what is exported is the base.
        path: Where to write; beside it ``<path>.data`` if the weights exceed 2 GB.
        example_inputs: As for `aimgraph.transform`; by default those of the transform.
        opset: ONNX opset; the exporter's own default if left out.
        optimize: Let the exporter fold constants and fuse nodes. By default it does, except in
            concat form, so that the file shows Reshape, Pad, Concat and the widened convolutions.
        tolerance: Largest max|d| / max|y| to accept.

    Raises:
        ExportError: The exporter fails, a write of carried state would be lost, or the file
            disagrees with torch.
    """
    path = Path(path)
    _require_onnx()
    inputs = _inputs(aim, example_inputs)
    if isinstance(aim, AimModule) and not aim._record.enabled:
        aim = strip(aim)  # a disabled memory leaves the base
    _refuse_lost_writes(aim)
    if optimize is None:
        optimize = not (isinstance(aim, AimModule) and aim._record.widened)
    device = next((t.device for t in aim.parameters()), torch.device("cpu"))
    sample = random_inputs(inputs, _EXPORTED_AT, seed=0, device=device)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _eval_mode(aim), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        program = _export(aim, sample, inputs, opset, optimize)
        draft = Path(folder) / path.name
        program.save(str(draft), external_data=_needs_external_data(aim))
        difference, relative = _compare(aim, draft, inputs, device)
        if not relative <= tolerance:
            raise ExportError(
                f"{path}: onnxruntime disagrees with torch by max|d| = {difference:.3g}, max|d| / max|y| = "
                f"{relative:.3g} > {tolerance:.3g}; nothing was written"
            )
        report = _report(path, draft, difference, relative)
        for file in sorted(Path(folder).iterdir(), reverse=True):
            file.replace(path.parent / file.name)
    return report


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"ONNX export needs {error.name}: pip install 'aimgraph[onnx]'") from error


def _refuse_lost_writes(aim: nn.Module) -> None:
    if not isinstance(aim, AimModule):
        return
    for memory in aim._record.plan.memories:
        if memory.config.carry == "state" and memory.config.write_in_eval:
            raise ExportError(
                f"memory {memory.name!r} writes its carried state in eval mode (write_in_eval=True), and an ONNX file "
                "has nowhere to keep it: transform with write_in_eval=False to export the state as it stands"
            )


def _inputs(aim: nn.Module, example_inputs: Any) -> Arguments:
    if example_inputs is None and isinstance(aim, AimModule):
        return aim._record.inputs
    if example_inputs is None and isinstance(aim, FoldedModule):
        return aim._aim_inputs
    return resolve_inputs(aim, example_inputs)


def _export(module: nn.Module, sample: Arguments, inputs: Arguments, opset: int | None, optimize: bool) -> Any:
    try:
        return _run_exporter(module, sample, inputs, opset, optimize)
    except Exception as error:
        reason = _told(error)
        if isinstance(module, AimModule):
            try:
                _run_exporter(strip(module).eval(), sample, inputs, opset, optimize)
            except Exception as limit:
                raise ExportError(
                    f"the exporter can't export the base alone either, so memory is not the cause: {_told(limit)}"
                ) from error
        raise ExportError(f"the exporter failed: {reason}") from error


def _told(error: BaseException) -> str:
    """The first line of what led to the exporter's error, whose own first line only says which of its steps failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"\x1b\[\d*m", "", str(error)).strip().split("\n")[0] or type(error).__name__


def _run_exporter(module: nn.Module, sample: Arguments, inputs: Arguments, opset: int | None, optimize: bool) -> Any:
    size = batch_size(inputs)
    batch = torch.export.Dim("batch")
    args, kwargs = tree_map(
        lambda leaf: ({0: batch} if leaf.dim() and leaf.shape[0] == size else {}) if isinstance(leaf, Tensor) else None,
        inputs,
    )
    shapes = dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments) if kwargs else tuple(args)
    with _quiet(), torch.no_grad():
        return torch.onnx.export(
            module,
            sample[0],
            kwargs=sample[1] or None,
            dynamo=True,
            dynamic_shapes=shapes,
            opset_version=opset,
            optimize=optimize,
            verbose=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about optional packages off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    flags = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        module.train(flags[module])
        for part, flag in flags.items():
            part.training = flag


def _needs_external_data(module: nn.Module) -> bool:
    size: int = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    return size > 1_900_000_000


def _compare(aim: nn.Module, path: Path, inputs: Arguments, device: torch.device) -> tuple[float, float]:
    """Largest absolute and relative difference over all outputs and batch sizes."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own, undocumented classes
        what = str(error).replace(str(path), path.name)  # a temporary one
        raise ExportError(f"onnxruntime can't load the exported graph: {what}") from error
    worst, relative = 0.0, 0.0
    for batch in BATCH_SIZES:
        sample = random_inputs(inputs, batch, seed=batch, device=device)
        with torch.no_grad():
            expected = tensors_in(aim(*sample[0], **sample[1]))
        feeds = [leaf.cpu().numpy() for leaf in tree_leaves(sample) if isinstance(leaf, Tensor)]
        names = [item.name for item in session.get_inputs()]
        _check_batch(session.get_inputs(), feeds, batch)
        try:
            given = session.run(None, dict(zip(names, feeds, strict=True)))
        except Exception as error:  # onnxruntime raises its own, undocumented classes
            raise ExportError(f"onnxruntime can't run the exported graph at batch size {batch}: {error}") from error
        for reference, result in zip(expected, given, strict=True):
            reference = reference.cpu().double()
            difference = (reference - torch.as_tensor(result).double()).abs().max().item() if reference.numel() else 0.0
            worst = max(worst, difference)
            relative = max(
                relative, difference / max(reference.abs().max().item(), 1e-30) if reference.numel() else 0.0
            )
    return worst, relative


def _check_batch(declared: list[Any], feeds: list[Any], batch: int) -> None:
    """Say so where the exporter has fixed the batch size.

    Raises:
        ExportError: It has.
    """
    for item, feed in zip(declared, feeds, strict=True):
        if feed.ndim and feed.shape[0] == batch and isinstance(item.shape[0], int) and item.shape[0] != batch:
            raise ExportError(
                f"the exporter has fixed the batch size: input {item.name!r} takes {item.shape} only, whatever batch "
                "the model itself takes"
            )


def _report(path: Path, draft: Path, difference: float, relative: float) -> OnnxReport:
    import onnx

    model = onnx.load(str(draft), load_external_data=False)
    onnx.checker.check_model(str(draft))
    operators = collections.Counter(node.op_type for node in model.graph.node)
    opset = max(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    size = sum(file.stat().st_size for file in draft.parent.iterdir())
    return OnnxReport(str(path), size, opset, dict(sorted(operators.items())), BATCH_SIZES, difference, relative)
