"""Give any PyTorch network a memory that every layer can read.

``import aimgraph`` imports no torch: each public name is imported when it is first used.
"""

import sys
from importlib import import_module, util
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from aimgraph.planning.shown import show_by
from aimgraph.version import __version__

if TYPE_CHECKING:  # for type checkers and editors; `_PLACES` says the same at run time
    from aimgraph import models_zoo, presets
    from aimgraph.api.check_training import check_training
    from aimgraph.api.controls import (
        disable_memory,
        enable_memory,
        freeze_base,
        freeze_reads,
        memory_parameters,
        skipped_writes,
    )
    from aimgraph.api.fold import fold
    from aimgraph.api.merge import Merged, merge
    from aimgraph.api.optimizer_groups import parameter_groups, print_trainable_parameters, trainable_parameters
    from aimgraph.api.refit import refit
    from aimgraph.api.strip import strip
    from aimgraph.api.to_source import SourceReport, to_source
    from aimgraph.api.training_report import TrainingReport
    from aimgraph.api.transform import plan, transform
    from aimgraph.api.verify import verify
    from aimgraph.api.widen import widen, widen_optimizer, widen_plan
    from aimgraph.checkpoint.load import load, load_memory
    from aimgraph.checkpoint.save import save
    from aimgraph.config import AimConfig
    from aimgraph.emit.module import AimModule
    from aimgraph.errors import (
        AimgraphError,
        CheckpointError,
        ConfigError,
        ExampleInputError,
        ExportError,
        PassError,
        PlanError,
        TraceError,
    )
    from aimgraph.onnx.check import verify_onnx
    from aimgraph.onnx.export import export_onnx
    from aimgraph.onnx.session import MemorySession
    from aimgraph.planning.picture import draw
    from aimgraph.runtime.parts import register
    from aimgraph.runtime.specs import BlockSpec, ReadSpec, SourceSpec
    from aimgraph.web.report import report

__all__ = [
    "AimConfig",
    "AimModule",
    "AimgraphError",
    "BlockSpec",
    "CheckpointError",
    "ConfigError",
    "ExampleInputError",
    "ExportError",
    "MemorySession",
    "Merged",
    "PassError",
    "PlanError",
    "ReadSpec",
    "SourceReport",
    "SourceSpec",
    "TraceError",
    "TrainingReport",
    "__version__",
    "check_training",
    "disable_memory",
    "draw",
    "enable_memory",
    "export_onnx",
    "fold",
    "freeze_base",
    "freeze_reads",
    "load",
    "load_memory",
    "memory_parameters",
    "merge",
    "models_zoo",
    "parameter_groups",
    "plan",
    "presets",
    "print_trainable_parameters",
    "refit",
    "register",
    "report",
    "save",
    "skipped_writes",
    "strip",
    "to_source",
    "trainable_parameters",
    "transform",
    "verify",
    "verify_onnx",
    "widen",
    "widen_optimizer",
    "widen_plan",
]

_PLACES = {
    "api.check_training": "check_training",
    "api.controls": "disable_memory enable_memory freeze_base freeze_reads memory_parameters skipped_writes",
    "api.fold": "fold",
    "api.merge": "Merged merge",
    "api.optimizer_groups": "parameter_groups print_trainable_parameters trainable_parameters",
    "api.refit": "refit",
    "api.strip": "strip",
    "api.to_source": "SourceReport to_source",
    "api.training_report": "TrainingReport",
    "api.transform": "plan transform",
    "api.verify": "verify",
    "api.widen": "widen widen_optimizer widen_plan",
    "checkpoint.load": "load load_memory",
    "checkpoint.save": "save",
    "config": "AimConfig",
    "emit.module": "AimModule",
    "errors": (
        "AimgraphError CheckpointError ConfigError ExampleInputError ExportError PassError PlanError TraceError"
    ),
    "onnx.check": "verify_onnx",
    "onnx.export": "export_onnx",
    "onnx.session": "MemorySession",
    "planning.picture": "draw",
    "runtime.parts": "register",
    "runtime.specs": "BlockSpec ReadSpec SourceSpec",
    "web.report": "report",
}
"""Module below `aimgraph` -> the public names that it defines."""

_HOMES = {name: f"aimgraph.{place}" for place, names in _PLACES.items() for name in names.split()}

_EARLIER = {"aimgraph.runtime.session": "aimgraph.onnx.session"}
"""Where a module was -> where it is."""


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'aimgraph' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Folder(ModuleType):
    """A package that imports its modules when they are first asked for: ``import aimgraph`` is enough for any path."""

    def __getattr__(self, name: str) -> Any:
        path = f"{self.__name__}.{name}"
        if name.startswith("_") or util.find_spec(path) is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)
        return import_module(path)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and hasattr(value, "__path__"):  # Python puts a package into the one around it
            value.__class__ = _Folder
        super().__setattr__(name, value)


class _Root(_Folder):
    """This module: `aimgraph.widen` is the function, though importing the folder of that name would replace it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


class _Moved(MetaPathFinder, Loader):
    """Finds modules where they were in earlier versions; what is found is the module itself, not a copy."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in _EARLIER else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(_EARLIER[module.__name__])


def _fragment(what: Any) -> str:
    """A plan or a transformed module as a notebook shows it."""
    from aimgraph.web.report import fragment

    return fragment(what)


show_by(_fragment)
sys.modules[__name__].__class__ = _Root
sys.meta_path.append(_Moved())
