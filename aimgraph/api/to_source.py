"""to_source: a module as a package of plain PyTorch, which needs torch and safetensors alone."""

import importlib.util
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from aimgraph.api.verify import all_same, outputs
from aimgraph.copies import copy_module
from aimgraph.distance import farthest
from aimgraph.emit.folded_module import FoldedModule
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import refuse_offloaded, tensors_named
from aimgraph.emit.record import record_of
from aimgraph.errors import ConfigError, PlanError
from aimgraph.inputs.arguments import Arguments
from aimgraph.inputs.batch import device_of
from aimgraph.inputs.examples import resolve_inputs
from aimgraph.inputs.samples import samples_for
from aimgraph.source_code.literals import is_name
from aimgraph.source_code.package import Source, source_of, write
from aimgraph.source_code.subject import subject_of
from aimgraph.user_code import told_error, told_hooks


@dataclass(frozen=True)
class SourceReport:
    """What was written.

    Attributes:
        path: The folder.
        name: Of the class in it.
        lines: Of ``model.py``.
        classes: How many there are.
        imports: Classes of other code that are imported, since they can't be traced.
        compared: In which modes its outputs are those of the module, bit for bit.
    """

    path: Path
    name: str
    lines: int
    classes: int
    imports: tuple[str, ...]
    compared: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self) | {"path": str(self.path)}

    def __str__(self) -> str:
        """What was written, in two lines."""
        also = f"; imports {', '.join(self.imports)}" if self.imports else ""
        return (
            f"{self.path}: {self.name}, {self.classes} class{'es' * (self.classes != 1)} in {self.lines} lines{also}\n"
            f"outputs are the same, bit for bit, in {' and '.join(self.compared)} mode"
        )


def to_source(
    module: nn.Module, folder: str | os.PathLike[str], example_inputs: Any = None, *, imports: bool = False
) -> SourceReport:
    """Write a module as a Python package of plain PyTorch: ``model.py``, ``load()`` and the weights.

    The package needs torch and safetensors alone, can be read and trained on, and gives the same bits: its outputs are
    compared with those of the module in both modes before it is put in place. Modules of other libraries are entered
    down to torch's own; memories become members of the modules that read them. What a forward decides by its inputs is
    settled as for the example inputs, and hooks of the modules are not written.

    Args:
        module: A transformed, folded, widened or stripped module, or any that can be traced; it is not changed.
        folder: Where to. It is made, and its name is that of the package; one that is there is empty.
        example_inputs: As for `aimgraph.transform`; by default those that a transformed or folded module was made with.
        imports: Whether the class of a part that can't be traced may be imported from where it is defined.

    Raises:
        ConfigError: There is something in the folder, or its name is none of a package; or a weight is offloaded.
        PlanError: A part has no source: it can't be traced, calls a function that is not of torch, or its outputs
            are others.
        ExampleInputError: The inputs don't fit the module or can't be inferred.
    """
    target = _checked(Path(folder))
    refuse_offloaded(tensors_named(module), "to_source")
    inputs = _inputs(module, example_inputs)
    subject = subject_of(module, inputs, imports=imports)
    source = source_of(subject)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
        draft = Path(place) / target.name
        draft.mkdir()
        write(source, subject.root, draft)
        compared = _compared(module, inputs, draft, source, grad=subject.grad)
        if target.exists():
            target.rmdir()
        draft.rename(target)
    lines = source.model.splitlines()
    count = sum(line.startswith("class ") for line in lines)
    return SourceReport(target, source.name, len(lines), count, source.imports, compared)


def _checked(folder: Path) -> Path:
    name = folder.name
    if not is_name(name) or name in sys.stdlib_module_names or name in ("torch", "safetensors"):
        raise ConfigError(f"{folder}: a package of the name {name!r} can't be imported, or hides another: rename it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there, and is not an empty folder: give another one, or remove it")
    return folder


def _inputs(module: nn.Module, example_inputs: Any) -> Arguments:
    if example_inputs is None and isinstance(module, AimModule):
        return record_of(module).inputs
    if example_inputs is None and isinstance(module, FoldedModule):
        return module._aim_inputs
    return resolve_inputs(module, example_inputs)


def _compared(module: nn.Module, inputs: Arguments, package: Path, source: Source, *, grad: bool) -> tuple[str, ...]:
    """Run what was written beside the module.

    Raises:
        PlanError: Its outputs are others.
    """
    ours, sample = copy_module(module), samples_for(module, inputs, device_of(module), grad=grad)
    modes = ("eval", "train")
    # inputs of its own for each run: a forward may write to them
    wanted = [outputs(ours.train(mode == "train"), sample.at(2, 0), grad=grad) for mode in modes]
    try:
        theirs = imported(package).load().to(device_of(module))
        found = [outputs(theirs.train(mode == "train"), sample.at(2, 0), grad=grad) for mode in modes]
    except Exception as error:  # whatever code that was written wrongly raises
        raise PlanError(
            f"{source.name}: what was written does not run ({told_error(error)}), so it was not kept{_hooks(module)}"
        ) from error
    for mode, one, other in zip(modes, wanted, found, strict=True):
        if not all_same(one, other):
            raise PlanError(_differ(module, source, mode, one, other))
    return modes


def _differ(module: nn.Module, source: Source, mode: str, ours: list[Tensor], theirs: list[Tensor]) -> str:
    gap = f", by up to {farthest(theirs, ours)[0]:.2g}" if len(ours) == len(theirs) else ""
    return (
        f"{source.name}: what was written gives other outputs than the module in {mode} mode{gap}, so it was not kept"
        f"{_hooks(module)}"
    )


def _hooks(module: nn.Module) -> str:
    """What to try where a package is not like its module."""
    held = [f"{path or 'the module'} ({told})" for path, one in module.named_modules() if (told := told_hooks(one))]
    if not held:
        return "; please report it, with the model"
    return f"; hooks are not written, and there are some at {', '.join(held[:4])}: take them away first"


def imported(package: Path) -> ModuleType:
    """The package in a folder, under a name of its own."""
    name = f"_aimgraph_source_{package.name}"
    spec = importlib.util.spec_from_file_location(
        name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(made)
    finally:
        for key in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[key]
    return made
