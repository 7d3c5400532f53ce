"""``aimgraph export``: a model with memory as an ONNX file, compared with torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aimgraph.cli import known
from aimgraph.cli.asked import Asked
from aimgraph.cli.click_parts import Names, replaced
from aimgraph.cli.options import FILE, FOLDER, MODEL_EPILOG, NEW_FILE, model_options
from aimgraph.cli.output import show
from aimgraph.cli.progress import Progress, progress
from aimgraph.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import nn

    from aimgraph.onnx.export import OnnxReport
    from aimgraph.onnx.prepare import Memory


@click.command("export", epilog=MODEL_EPILOG)
@model_options
@click.option("--onnx", "path", type=NEW_FILE, required=True, help="The ONNX file to write.")
@replaced("--weights", "--checkpoint FOLDER", type=FILE)
@click.option(
    "--checkpoint",
    type=FOLDER,
    metavar="FOLDER",
    help="Give MODEL the memory in this folder; its options are those it was made with.",
)
@click.option(
    "--memory",
    type=Names(known.MEMORIES.value),
    help="Where the memory is in the file: folded, an input, a state that goes in and out, or computed inside.",
)
@replaced("--fold", "--memory constant", "folds", is_flag=True)
@click.option(
    "--fuse-batchnorm", is_flag=True, help="Fold the memory and batch normalisation into the layers before them."
)
@click.option("--opset", type=int, metavar="N", help="ONNX opset; by default the exporter's own.")
@click.option("--float16", is_flag=True, help="Write in half precision.")
@click.option("--dynamic-size", is_flag=True, help="Let the sizes behind the channels vary, too.")
@click.option(
    "--output-names",
    metavar="NAME,...",
    callback=lambda _context, _option, names: names and names.split(","),
    help="Names of the outputs in the file; by default those that MODEL gives them, or output, output_0, ...",
)
def export_command(
    asked: Asked,
    path: str,
    weights: str | None,
    checkpoint: str | None,
    memory: "Memory | None",
    folds: bool,
    fuse_batchnorm: bool,
    **settings: Any,
) -> None:
    """Transform MODEL and export it to ONNX.

    The file is compared with torch, in onnxruntime, before it is put in place.
    """
    with progress(f"loading {asked.model}") as shown:
        from aimgraph.api.fold import fold
        from aimgraph.onnx.export import export_onnx

        aim = _made(asked, shown, checkpoint)
        if weights:
            _load_state(aim, Path(weights))
        if fuse_batchnorm:
            shown.step("folding")
            if memory not in (None, "constant"):
                raise ConfigError(
                    f"--fuse-batchnorm folds the memory, and --memory {memory} does not: give one of them"
                )
            aim = fold(aim, fuse_batchnorm=True)
        shown.step(f"exporting to {path} and comparing in onnxruntime")
        report = export_onnx(aim, path, memory=memory or ("constant" if folds else None), **settings)
    show(asked.as_json, report.to_dict(), _export_text(report))


def _made(asked: Asked, shown: Progress, checkpoint: str | None) -> "nn.Module":
    """The model with memory: the one of a checkpoint, or a new one."""
    from aimgraph.api.transform import transform
    from aimgraph.checkpoint.load import load

    base = asked.base()
    shown.step("transforming")
    if checkpoint:
        return load(checkpoint, base, asked.example_inputs())
    made: nn.Module = transform(base, asked.example_inputs(), **asked.settings())
    return made


def _export_text(report: "OnnxReport") -> str:
    return (
        f"{report.path}: {report.bytes / 1e6:.1f} MB, opset {report.opset}\n"
        f"operators: {', '.join(f'{count} {name}' for name, count in report.operators.items())}\n"
        f"onnxruntime against torch at batch sizes {list(report.batch_sizes)}: "
        f"max|d| = {report.max_difference:.2e}, max|d| / max|y| = {report.relative_difference:.2e}"
    )


def _load_state(aim: "nn.Module", path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        aim.load_state_dict(load_file(str(path)))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error
