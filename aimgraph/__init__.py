"""Give any PyTorch network a memory that every layer can read."""

import sys

from aimgraph import models_zoo, presets, runtime
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
from aimgraph.onnx import session
from aimgraph.onnx.check import verify_onnx
from aimgraph.onnx.export import export_onnx
from aimgraph.onnx.session import MemorySession
from aimgraph.planning.picture import draw
from aimgraph.planning.plan import Plan
from aimgraph.planning.shown import show_by
from aimgraph.runtime.parts import register
from aimgraph.runtime.specs import BlockSpec, ReadSpec, SourceSpec
from aimgraph.version import __version__
from aimgraph.web.report import fragment, report

runtime.session = sys.modules["aimgraph.runtime.session"] = session  # type: ignore[attr-defined]  # its earlier path
show_by(Plan, fragment)
show_by(AimModule, fragment)

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
