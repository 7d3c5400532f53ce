"""The commands and their exit codes."""

import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from aimgraph.api.fold import fold
from aimgraph.api.report import Report
from aimgraph.api.strip import strip
from aimgraph.api.to_source import to_source as write_source
from aimgraph.api.transform import plan, transform
from aimgraph.api.verify import verify
from aimgraph.checkpoint.entries import What
from aimgraph.checkpoint.load import load
from aimgraph.checkpoint.save import save as save_checkpoint
from aimgraph.checkpoint.values import state_of
from aimgraph.cli.bench import bench_command
from aimgraph.cli.experiment import experiment_group
from aimgraph.cli.memory import memory_group
from aimgraph.cli.options import FILE, FOLDER, Asked, model_options, replaced
from aimgraph.cli.output import console, json_text, show, steps
from aimgraph.cli.report import report_command
from aimgraph.cli.sequence import sequence
from aimgraph.cli.widen import widen_command
from aimgraph.cli.zoo import zoo_group
from aimgraph.compiler.program import HistoryEntry, Pass, Program
from aimgraph.emit.module import AimModule
from aimgraph.errors import AimgraphError, CheckpointError, ConfigError, ExampleInputError, ExportError
from aimgraph.onnx.check import FileReport, verify_onnx
from aimgraph.onnx.export import OnnxReport, export_onnx
from aimgraph.onnx.prepare import Memory
from aimgraph.passes import WidenChannels
from aimgraph.planning.picture import check_ending, draw
from aimgraph.planning.plan import Plan
from aimgraph.version import __version__

EXIT_DIFFERENT, EXIT_USAGE, EXIT_MODEL, EXIT_EXPORT, EXIT_BUG = 1, 2, 3, 4, 70

_EPILOG = """
MODEL is zoo/NAME (mlp, vgg16, resnet50_keras, efficientnet_lite0), torchvision/NAME, timm/NAME,
FILE.onnx (with aimgraph[onnx-in]), or package.module:factory, which imports and calls your own code.

Exit codes: 0 done; 1 checked and found different; 2 an option, an input, a file or the model's name is wrong;
3 this model can't be traced, planned or transformed; 4 the export failed; 70 a bug, please report it.
"""


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """Give any PyTorch network a memory that every layer can read."""


@cli.command("plan", epilog=_EPILOG)
@model_options
def plan_command(asked: Asked) -> None:
    """Show what a transform of MODEL would do, and change nothing."""
    with steps(asked.model) as step:
        plan = _planned(asked, step)
    if asked.as_json:
        click.echo(json_text(plan.to_dict()))
    else:
        plan.print(console())


@cli.command("transform", epilog=_EPILOG)
@model_options
@click.option("--dump", type=click.Path(file_okay=False), help="Write the graph after every pass into this folder.")
@replaced("--save", "--checkpoint FOLDER", type=click.Path(dir_okay=False))
@click.option("--checkpoint", type=click.Path(file_okay=False), help="Save the memory into this folder.")
@click.option("--what", type=click.Choice(get_args(What)), help="What --checkpoint saves; by default the memory.")
@click.option("--code", is_flag=True, help="Print the emitted forward as Python.")
@click.option(
    "--to-source",
    type=click.Path(file_okay=False),
    help="Write it as plain PyTorch into this folder; also --source ./DIR.",
)
@click.option("--passes", help='What runs, in order, e.g. "widen{parameters=1.5},memory{shape=(7,7,4)}".')
def transform_command(
    asked: Asked,
    dump: str | None,
    save: str | None,
    checkpoint: str | None,
    what: What | None,
    code: bool,
    to_source: str | None,
    passes: str | None,
) -> None:
    """Transform MODEL and compare the result with it, bit for bit; with the widened one, where --passes widen it."""
    if what and not checkpoint:
        raise ConfigError(f"--what {what} says what --checkpoint saves: give --checkpoint FOLDER, too")
    folder = asked.memory.pop("source") if isinstance(asked.memory["source"], Path) else to_source
    aim, report, history = _transformed(asked, dump, passes)
    planned = plan(aim)
    if save:
        _save_state(aim, Path(save))
    if checkpoint:
        save_checkpoint(aim, checkpoint, what=what or "memory")
    written = write_source(aim, folder) if folder else None
    if asked.as_json:
        ran = [asdict(entry) for entry in history]
        extra: dict[str, Any] = {"code": aim.code} if code else {}
        extra |= {"source": written.to_dict()} if written else {}
        click.echo(json_text(planned.to_dict() | {"passes": ran, "verify": report.to_dict()} | extra))
    else:
        planned.print(console())
        click.echo("passes: " + ", ".join(f"{entry.name} {entry.seconds * 1000:.0f} ms" for entry in history))
        click.echo(str(report))
        if written:
            click.echo(str(written))
        if code:
            click.echo(aim.code)
    sys.exit(0 if report.ok else EXIT_DIFFERENT)


@cli.command("verify", epilog=_EPILOG)
@model_options
def verify_command(asked: Asked) -> None:
    """Transform MODEL and report whether it still computes what it did; or check an ONNX file that was exported."""
    report: Report | FileReport
    if asked.model.endswith(".onnx"):
        report = verify_onnx(asked.model)
        text = _file_text(asked.model, report)
    else:
        _, report, _ = _transformed(asked)
        text = str(report)
    show(asked.as_json, report.to_dict(), text)
    sys.exit(0 if report.ok else EXIT_DIFFERENT)


def _file_text(path: str, report: FileReport) -> str:
    about = report.about
    lines = [f"{path}: aimgraph {about['aimgraph']}, torch {about['torch']}, memory: {about['memory'] or 'none'}"]
    for item in about["memories"]:
        ends = f"{item['input']} -> {item['output']}" if item["output"] else item["input"]
        lines.append(f"  {item['memory']}: {item['kind']}, {item['values']:,} values, {ends}, rows: {item['rows']}")
    lines += [f"  {'ok' if check.passed else 'FAILED'}  {check.name}: {check.seen}" for check in report.checks]
    return "\n".join(lines)


@cli.command("export", epilog=_EPILOG)
@model_options
@click.option("--onnx", "path", type=click.Path(dir_okay=False), required=True, help="The ONNX file to write.")
@replaced("--weights", "--checkpoint FOLDER", type=FILE)
@click.option(
    "--checkpoint", type=FOLDER, help="Give MODEL the memory in this folder; its options are those it was made with."
)
@click.option(
    "--memory",
    type=click.Choice([name for name in get_args(Memory) if name != "none"]),
    help="Where the memory is in the file: folded, an input, a state that goes in and out, or computed inside.",
)
@replaced("--fold", "--memory constant", "folds", is_flag=True)
@click.option("--fuse-batchnorm", is_flag=True, help="And batch normalisation into the layers before it.")
@click.option("--opset", type=int, help="ONNX opset; by default the exporter's own.")
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
    memory: Memory | None,
    folds: bool,
    fuse_batchnorm: bool,
    **settings: Any,
) -> None:
    """Transform MODEL, export it to ONNX and compare the file with torch in onnxruntime."""
    with steps(asked.model) as step:
        base = asked.base()
        step("transforming")
        if checkpoint:
            aim = load(checkpoint, base, asked.example_inputs())
        else:
            aim = transform(
                base, asked.example_inputs(), config=asked.configs(), example_batches=asked.example_batches()
            )
        if weights:
            _load_state(aim, Path(weights))
        if fuse_batchnorm:
            step("folding")
            if memory not in (None, "constant"):
                raise ConfigError(
                    f"--fuse-batchnorm folds the memory, and --memory {memory} does not: give one of them"
                )
            aim = fold(aim, fuse_batchnorm=True)
        step(f"exporting to {path} and comparing in onnxruntime")
        report = export_onnx(aim, path, memory=memory or ("constant" if folds else None), **settings)
    show(asked.as_json, report.to_dict(), _export_text(report))


def _export_text(report: OnnxReport) -> str:
    return (
        f"{report.path}: {report.bytes / 1e6:.1f} MB, opset {report.opset}\n"
        f"operators: {', '.join(f'{count} {name}' for name, count in report.operators.items())}\n"
        f"onnxruntime against torch at batch sizes {list(report.batch_sizes)}: "
        f"max|d| = {report.max_difference:.2e}, max|d| / max|y| = {report.relative_difference:.2e}"
    )


@cli.command("draw", epilog=_EPILOG)
@model_options
@click.option("--out", "path", type=click.Path(dir_okay=False), required=True, help="png, svg or pdf file to write.")
def draw_command(asked: Asked, path: str) -> None:
    """Draw a plan: which layers of MODEL read, how much, and which value of the memory."""
    check_ending(path)
    with steps(asked.model) as step:
        plan = _planned(asked, step)
        step("drawing")
        written = str(draw(plan, path))
    show(asked.as_json, {"path": written}, written)


for _command in (bench_command, experiment_group, memory_group, report_command, widen_command, zoo_group):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; every `AimgraphError` becomes a message and an exit code."""
    warnings.showwarning = _show_warning
    try:
        cli.main(prog_name="aimgraph", standalone_mode=True)
    except AimgraphError as error:
        click.echo(f"aimgraph: {type(error).__name__}: {error}", err=True)
        sys.exit(_exit_code(error))
    except Exception:
        traceback.print_exc()
        click.echo("aimgraph: this is a bug; please report it with the lines above", err=True)
        sys.exit(EXIT_BUG)


def _exit_code(error: AimgraphError) -> int:
    if isinstance(error, ConfigError | ExampleInputError | CheckpointError):
        return EXIT_USAGE
    return EXIT_EXPORT if isinstance(error, ExportError) else EXIT_MODEL


def _planned(asked: Asked, step: Callable[[str], None]) -> Plan:
    base = asked.base()
    step("planning")
    return plan(base, asked.example_inputs(), **asked.settings())


def _transformed(
    asked: Asked, dump: str | None = None, passes: str | None = None
) -> tuple[AimModule, Report, list[HistoryEntry]]:
    """The transformed model, how it compares with its base, and the passes that made it."""
    history: list[HistoryEntry] = []
    settings = asked.settings() if passes is None else _settings(asked, passes)
    with steps(asked.model) as step:
        base = asked.base()

        def watch(done: Pass, program: Program) -> None:
            history.append(program.history[-1])
            step(f"{done.name}: {program.stage.name.lower()}")

        aim = transform(base, asked.example_inputs(), **settings, dump=dump, watch=[watch])
        widened = any(entry.modified and entry.name == WidenChannels().name for entry in history)
        step("comparing with the base")
        return aim, verify(strip(aim) if widened else base, aim), history


def _settings(asked: Asked, passes: str) -> dict[str, Any]:
    """The arguments of `aimgraph.transform` that ``--passes`` gives."""
    given = [name for name, value in asked.memory.items() if value is not None and value != ()]
    if given:
        raise ConfigError(f"--passes says what the memory is, too: give {given} as memory{{...}}")
    asked_for = sequence(passes)
    batches = {"example_batches": asked.example_batches()}
    return batches | {"passes": asked_for.passes, **({"config": asked_for.configs} if asked_for.configs else {})}


def _save_state(aim: AimModule, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    save_file({key: value.detach().clone().contiguous() for key, value in state_of(aim).items()}, str(draft))
    draft.replace(path)


def _load_state(aim: nn.Module, path: Path) -> None:
    try:
        aim.load_state_dict(load_file(str(path)))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"aimgraph: {message}", err=True)
