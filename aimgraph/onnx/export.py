"""ONNX export, checked against onnxruntime before the file is put in place."""

import collections
import inspect
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from aimgraph.api.strip import strip
from aimgraph.copies import copy_module
from aimgraph.emit.folded_module import FoldedModule
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import refuse_offloaded, tensors_named, with_own_forwards
from aimgraph.emit.record import record_of
from aimgraph.emit.retrace import has_hooks
from aimgraph.errors import ConfigError, ExportError
from aimgraph.fake.tensors import quiet
from aimgraph.inputs.arguments import Arguments, tensors_in
from aimgraph.inputs.batch import batch_size, device_of
from aimgraph.inputs.examples import resolve_inputs
from aimgraph.inputs.samples import Samples
from aimgraph.onnx.compare import Comparison, samples_of
from aimgraph.onnx.file import BATCH_SIZES, EXPORTED_AT, TOLERANCES, add_metadata, name_ends, told
from aimgraph.onnx.names import name_outputs, names_of
from aimgraph.onnx.prepare import Memory, Prepared, half, in_half, prepare
from aimgraph.onnx.refuse import deciding_parts, refuse_not_numbers
from aimgraph.onnx.translations import translations
from aimgraph.passes.expose_state import Exposed
from aimgraph.runtime.given import folder_of, given_module, given_names, given_number, given_path
from aimgraph.runtime.guards import GuardError
from aimgraph.torch_private import tree_map
from aimgraph.user_code import told_pre_hooks


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
        memory: Where the memory is: ``constant``, ``input``, ``state`` or ``inside``; empty without one.
        memories: Those that are inputs, with their names, sizes and outputs.
        sizes: Shapes of the first input at which it was compared, batch size 1.
    """

    path: str
    bytes: int
    opset: int
    operators: dict[str, int]
    batch_sizes: tuple[int, ...]
    max_difference: float
    relative_difference: float
    memory: str = ""
    memories: tuple[Exposed, ...] = ()
    sizes: tuple[tuple[int, ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def export_onnx(
    aim: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any = None,
    *,
    memory: Memory | None = None,
    opset: int | None = None,
    optimize: bool | None = None,
    tolerance: float | None = None,
    float16: bool = False,
    dynamic_size: bool = False,
    output_names: Sequence[str] | None = None,
) -> OnnxReport:
    """Write the eval-mode computation of `aim` to an ONNX file with a dynamic batch.

    The file is compared with torch in onnxruntime at two batch sizes first, and after three steps where it has state,
    and only then put in place: an existing file survives every failure.

    Args:
        aim: A transformed or folded module, or a larger one with such parts; it is copied first. With its
            memory disabled, what is exported is the base. Of memory sets, the one in use is exported.
        path: Where to write; beside it ``<path>.data`` if the weights exceed 2 GB.
        example_inputs: As for `aimgraph.transform`; by default those of the transform.
        memory: ``"constant"``: folded, see `aimgraph.fold`; the default in split form. ``"input"``: the values of every
            memory without updates are an input, [1, N] or [B, N], so that one file serves many memories. It holds one
            set of read weights, so memory sets must share theirs.
            ``"state"``: what a memory with updates starts with is an input, ``<name>_in``, and what it ends with an
            output, ``<name>_out``; a carried one is written as with ``write_in_eval``. ``"inside"``: computed in the
            file as in the module; the default in concat form. Memories that a choice does not fit are constant.
            ``"none"``: there is none, as in a base or in what `aimgraph.merge` gives; any module that torch can export.
        opset: ONNX opset: 18 or later, or an earlier one that the exporter can convert this model to. Its own default
            if left out.
        optimize: Let the exporter fold constants and fuse nodes. By default it does, except in
            concat form, so that the file shows Reshape, Pad, Concat and the convolutions over both.
        tolerance: Largest max|d| / max|y| to accept; 1e-4, and 1e-2 for float16.
        float16: Write floating-point numbers in half precision; inputs and outputs are, too. It is compared with
            what `aim` gives in its own. A module whose parameters are in half precision is always written so.
        dynamic_size: Let the dimensions behind the channels vary, too, where the base lets them. It is compared at a
            further size. Bias maps are of one size, so that ``memory="inside"`` is the default.
        output_names: Names of the base's outputs in the file. By default those that the base gives them, keys of a dict
            and fields of a dataclass or named tuple, and otherwise ``output``, or ``output_0``, ``output_1``, ...

    Raises:
        ExampleInputError: The module does not run on inputs like the example.
        ConfigError: `memory` is none of these, or `output_names` are not as many different names as there are outputs.
        ExportError: The exporter fails or writes another opset, a write of carried state would be lost, there is no
            memory, or none of the kind, memory sets have read weights of their own where values are an input, sizes
            can't vary, weights or memory hold not-a-number, or the file disagrees with torch.
    """
    path = given_path(path, "the file to export to")
    _check_options(aim, path, opset, tolerance, output_names)
    _require_onnx()
    if memory not in (None, *get_args(Memory)):
        raise ConfigError(f"memory={memory!r}: export_onnx takes one of {', '.join(get_args(Memory))}")
    refuse_offloaded(tensors_named(aim), "export_onnx", ExportError)
    aim = copy_module(with_own_forwards(aim)).eval()  # whose forward may keep something in eval mode
    inputs = _inputs(aim, example_inputs)
    if isinstance(aim, AimModule) and not record_of(aim).enabled:
        aim = strip(aim)  # a disabled memory leaves the base
        memory = "none" if memory in (None, "constant", "inside") else memory
    refuse_not_numbers(aim)
    float16 = float16 or in_half(aim)
    tolerance = TOLERANCES[float16] if tolerance is None else tolerance
    with tempfile.TemporaryDirectory(dir=folder_of(path, ExportError), prefix=f".{path.name}.") as folder:
        prepared = prepare(aim, inputs, memory, dynamic_size=dynamic_size)
        if optimize is None:
            optimize = not (isinstance(prepared.module, AimModule) and record_of(prepared.module).concat_sites)
        written = half(prepared) if float16 else prepared
        samples = samples_of(aim, inputs)
        program = _export(aim, written, samples, opset, optimize=optimize, dynamic_size=dynamic_size)
        check = Comparison(aim, prepared, samples, device_of(aim), half=float16, sizes=dynamic_size)
        _describe(program, written, samples, check, output_names)
        draft = Path(folder) / path.name
        program.save(str(draft), external_data=_needs_external_data(written.module))
        _check_opset(opset, draft)
        report = _compared(check, prepared, path, draft, tolerance)
        for file in sorted(Path(folder).iterdir(), reverse=True):
            file.replace(path.parent / file.name)
    return report


def _check_options(aim: Any, path: Path, opset: Any, tolerance: Any, output_names: Any) -> None:
    """Refuse options of other kinds before anything is computed."""
    given_module(aim, "export_onnx")
    given_number(opset, "opset", int)
    given_number(tolerance, "tolerance")
    given_names(output_names, "output_names")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give the path of a file to export to")


def _describe(
    program: Any, written: Prepared, samples: Samples, check: Comparison, names: Sequence[str] | None
) -> None:
    """Name what the graph takes and gives, and say in the file what it is."""
    output, after = check.example()
    name_ends(program, written, samples.inputs)
    name_outputs(program.model.graph, names_of(output, names), chosen=names is not None)
    add_metadata(program, written, samples, [told(value) for value in (*tensors_in(output), *after)])


def _compared(check: Comparison, prepared: Prepared, path: Path, draft: Path, tolerance: float) -> OnnxReport:
    """The report on a file that is to be at `path`, once it agrees with torch."""
    import onnx

    difference, relative = check.run(draft)
    if not relative <= tolerance:
        raise ExportError(
            f"{path}: onnxruntime disagrees with torch by max|d| = {difference:.3g}, max|d| / max|y| = "
            f"{relative:.3g} > {tolerance:.3g}; nothing was written{check.unsteady()}"
        )
    model = onnx.load(str(draft), load_external_data=False)
    onnx.checker.check_model(str(draft))
    operators = dict(sorted(collections.Counter(node.op_type for node in model.graph.node).items()))
    size = sum(file.stat().st_size for file in draft.parent.iterdir())
    seen = (check.inputs.sizes, difference, relative, prepared.memory, prepared.exposed, check.shapes)
    return OnnxReport(str(path), size, _opset_of(model), operators, *seen)


def _check_opset(asked: int | None, draft: Path) -> None:
    """Refuse a file of another opset than was asked for: the exporter only warns where it can't write that."""
    import onnx

    written = _opset_of(onnx.load(str(draft), load_external_data=False))
    if asked not in (None, written):
        raise ExportError(
            f"opset={asked} was asked for, and the exporter gave opset {written}: it can't convert this model to the "
            "other, and nothing was written; leave opset out, or give one that it can write: 18, or a later one"
        )


def _opset_of(model: Any) -> int:
    return int(max(item.version for item in model.opset_import if item.domain in ("", "ai.onnx")))


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"ONNX export needs {error.name}: pip install 'aimgraph[onnx]'") from error


def _inputs(aim: nn.Module, example_inputs: Any) -> Arguments:
    if example_inputs is None and isinstance(aim, AimModule | FoldedModule):
        return record_of(aim).inputs if isinstance(aim, AimModule) else aim._aim_inputs
    return resolve_inputs(aim, example_inputs)


def _export(
    aim: nn.Module, prepared: Prepared, inputs: Samples, opset: int | None, *, optimize: bool, dynamic_size: bool
) -> Any:
    try:
        return _run_exporter(prepared, inputs, opset, optimize=optimize, dynamic_size=dynamic_size)
    except Exception as error:
        reason = _told(error)
        if any(isinstance(part, AimModule) for part in aim.modules()):
            base = Prepared(strip(aim).eval(), "", float16=prepared.float16)
            try:
                _run_exporter(base, inputs, opset, optimize=optimize, dynamic_size=dynamic_size)
            except Exception as limit:
                raise ExportError(
                    f"the exporter can't export the base alone either, so memory is not the cause: {_told(limit)}"
                    f"{deciding_parts(aim)}"
                ) from error
        hooks = told_pre_hooks(aim) if isinstance(_cause(error), GuardError) else ""
        reason += f"; hooks around its forward ({hooks}) give it other arguments" if hooks else ""
        raise ExportError(f"the exporter failed: {reason}{deciding_parts(aim)}") from error


def _told(error: BaseException) -> str:
    """The first line of what led to the exporter's error, whose own first line only says which of its steps failed."""
    error = _cause(error)
    return re.sub(r"\x1b\[\d*m", "", str(error)).strip().split("\n")[0] or type(error).__name__


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _run_exporter(prepared: Prepared, inputs: Samples, opset: int | None, *, optimize: bool, dynamic_size: bool) -> Any:
    module = prepared.module
    batch = EXPORTED_AT if inputs.sizes == BATCH_SIZES else inputs.sizes[0]
    args, kwargs = prepared.cast(inputs.at(batch, seed=0, device=device_of(module)))
    given = tuple(prepared.example(item, batch) for item in prepared.exposed)
    with quiet("torch.onnx", logging.ERROR), warnings.catch_warnings(action="ignore"), torch.no_grad():
        return torch.onnx.export(
            _Called(module) if has_hooks(module) else module,
            (*given, *args),
            kwargs=kwargs or None,
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(prepared, inputs.inputs, dynamic_size=dynamic_size),
            opset_version=opset,
            optimize=optimize,
            verbose=False,
            custom_translation_table=translations(),
        )


class _Called(nn.Module):
    """Calls a module, with its hooks: of the outermost module the exporter runs the forward alone."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

        def run(*args: Any, **kwargs: Any) -> Any:
            return module(*args, **kwargs)

        vars(run)["__signature__"] = inspect.signature(module.forward)  # a file has its names of inputs
        self.forward = run
        self.eval()


def _dynamic_shapes(prepared: Prepared, inputs: Arguments, *, dynamic_size: bool) -> Any:
    """Which dimensions of memories and inputs vary: a tuple, or a dict by argument where some are given by keyword."""
    size = batch_size(inputs)
    batch = torch.export.Dim("batch", min=2)  # 1 works, too, but torch 2.9 refuses to promise it

    def dimensions(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        if not leaf.dim() or leaf.shape[0] != size:
            return {}
        further = range(2, leaf.dim()) if dynamic_size and leaf.is_floating_point() else ()
        return {0: batch} | dict.fromkeys(further, torch.export.Dim.AUTO)

    args, kwargs = tree_map(dimensions, inputs)
    args = (*({0: batch} if item.rows in ("any", "batch") else {} for item in prepared.exposed), *args)
    return dict(inspect.signature(prepared.module.forward).bind(*args, **kwargs).arguments) if kwargs else args


def _needs_external_data(module: nn.Module) -> bool:
    return bool(sum(tensor.nbytes for _, tensor in tensors_named(module)) > 1_900_000_000)
