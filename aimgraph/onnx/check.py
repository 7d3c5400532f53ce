"""aimgraph verify F.onnx: whether a file is whole, and still computes what torch gave when it was written."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aimgraph.distance import LEAST, distance, farthest, largest
from aimgraph.errors import AimgraphError, ConfigError, ExportError
from aimgraph.inputs.as_json import inputs_from_json
from aimgraph.inputs.batch import random_inputs
from aimgraph.onnx.file import TOLERANCES, arrays_of, told
from aimgraph.onnx.session import METADATA, MemorySession
from aimgraph.runtime.given import given_number, given_path


@dataclass(frozen=True)
class FileCheck:
    """One thing that was looked at; true where it is as it should be.

    Attributes:
        name: What.
        passed: Whether it is as it should be.
        seen: What was seen.
    """

    name: str
    passed: bool
    seen: str

    def __bool__(self) -> bool:
        return self.passed


@dataclass(frozen=True)
class FileReport:
    """What a file is, and whether it is whole; true where it is.

    Attributes:
        path: The file.
        about: What it says of itself, without the plan.
        checks: In order.
    """

    path: str
    about: dict[str, Any]
    checks: tuple[FileCheck, ...]

    @property
    def ok(self) -> bool:
        """Whether all is as it should be."""
        return all(check.passed for check in self.checks)

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self) | {"ok": self.ok}


def verify_onnx(path: str | os.PathLike[str], *, tolerance: float | None = None) -> FileReport:
    """Check a file that `aimgraph.export_onnx` wrote, without the model.

    Its structure is checked by onnx, and it is run in onnxruntime on the inputs for which it remembers what torch gave.
    A file whose memory is an input is run with a row for each sample, too: equal rows must give what one row gives.
    One with state must start again where it started after `reset`.

    Args:
        path: The file.
        tolerance: Largest max|d| / max|y|; 1e-4, and 1e-2 for a file in half precision.

    Raises:
        ConfigError: There is no such file.
        ExportError: It can't be read or loaded, or was not written by `aimgraph.export_onnx`.
    """
    path = given_path(path, "what verify_onnx takes")
    given_number(tolerance, "tolerance")
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file")
    import onnx

    try:
        onnx.checker.check_model(str(path))
        session = MemorySession(path)
        about = dict(session.about)
        expected = about.pop("expected")
        sample = _sample(about, expected, path)
    except (AimgraphError, OSError, ValueError, KeyError) as error:
        raise ExportError(f"{path}: {error}") from error
    except Exception as error:  # onnx and onnxruntime raise their own, undocumented classes
        raise ExportError(f"{path}: {str(error).strip().splitlines()[0]}") from error
    about.pop("plan", None)
    about.pop("inputs", None)
    tolerance = TOLERANCES[about["float16"]] if tolerance is None else tolerance
    checks = [FileCheck("structure", True, "onnx.checker finds nothing")]
    try:
        checks += _runs(session, sample, expected, tolerance)
    except Exception as error:  # onnxruntime raises its own, undocumented classes
        checks.append(FileCheck("runs in onnxruntime", False, str(error).strip().splitlines()[0]))
    return FileReport(str(path), about, tuple(checks))


def _sample(about: dict[str, Any], expected: dict[str, Any], path: Path) -> list[Any]:
    if about["inputs"] is None:
        raise ExportError(
            f"it does not remember its example inputs, which no JSON can hold ({METADATA} of {path.name})"
        )
    inputs = inputs_from_json(about["inputs"], str(path))
    if "seed" in expected:  # otherwise the model takes no numbers that are drawn
        inputs = random_inputs(inputs, expected["batch"], seed=expected["seed"])
    return arrays_of(inputs, half=about["float16"])


def _runs(session: MemorySession, sample: list[Any], expected: dict[str, Any], tolerance: float) -> list[FileCheck]:
    first = session.run(*sample)
    after = [session.state[name] for name, item in session.memories.items() if item["output"]]
    shapes, gaps, blank = True, [], False
    for given, wanted in zip([*first, *after], expected["outputs"], strict=True):
        seen = told(torch.as_tensor(given))
        shapes = shapes and seen["shape"] == wanted["shape"]
        gap, _ = distance(np.array(seen["values"]), np.array(wanted["values"]))
        gaps.append((gap, gap / max(wanted["max"], LEAST)))
        blank = blank or (bool(wanted["values"]) and bool(np.isnan(np.array(wanted["values"], float)).all()))
    _, worst = largest(gaps)
    what = f"max|d| / max|y| = {worst:.2e} at batch size {expected['batch']}" if shapes else "other shapes"
    what = "torch gave not-a-number: nothing can be compared" if blank else what
    checks = [FileCheck("gives what torch gave", shapes and worst <= tolerance and not blank, what)]
    several = [name for name, item in session.memories.items() if item["rows"] == "any"]
    if several:
        rows = {name: np.repeat(session.state[name], expected["batch"], axis=0) for name in several}
        _, far = farthest(session.run(*sample, memories=rows), first)
        checks.append(FileCheck("a row for each sample", far <= tolerance, f"max|d| / max|y| = {far:.2e} to one row"))
    if after:
        session.reset()
        _, far = farthest(session.run(*sample), first)
        checks.append(FileCheck("starts again after reset", far <= tolerance, f"max|d| / max|y| = {far:.2e}"))
    return checks
