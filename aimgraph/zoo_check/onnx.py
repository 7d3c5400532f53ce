"""Does a transformed model go to ONNX and compute the same there?"""

import tempfile
from pathlib import Path

from torch import nn

from aimgraph.emit.module import AimModule
from aimgraph.emit.record import record_of
from aimgraph.errors import ExportError
from aimgraph.inputs.batch import random_inputs
from aimgraph.onnx.export import export_onnx


def export(base: nn.Module, aim: AimModule) -> tuple[str, bool]:
    """Export `aim` and compare it in onnxruntime at two other batch sizes.

    Returns:
        What is wrong, empty if nothing is, and whether the base alone fails as well.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_onnx(aim, Path(folder) / "aim.onnx")
        except ExportError as error:
            try:
                inputs = random_inputs(record_of(aim).inputs, 2, seed=0)
                export_onnx(base, Path(folder) / "base.onnx", inputs, memory="none")
            except ExportError as limit:
                return f"the base alone can't be exported: {limit}".replace(f"{folder}/", ""), True
            return str(error).replace(f"{folder}/", ""), False
    return "", False
