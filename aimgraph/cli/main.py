"""The commands and their exit codes. Each command is imported when it is called, and torch when it runs."""

import sys
import warnings
from typing import Any

import click

from aimgraph.cli.click_parts import LazyGroup
from aimgraph.cli.options import MODEL_EPILOG
from aimgraph.errors import AimgraphError, CheckpointError, ConfigError, ExampleInputError, ExportError
from aimgraph.version import __version__

EXIT_USAGE, EXIT_MODEL, EXIT_EXPORT, EXIT_BUG = 2, 3, 4, 70

COMMANDS = {
    "plan": ("aimgraph.cli.plan:plan_command", "Show what a transform of MODEL would do, and change nothing."),
    "transform": ("aimgraph.cli.transform:transform_command", "Transform MODEL and compare the result with it."),
    "verify": ("aimgraph.cli.verify:verify_command", "Report whether MODEL with a memory computes what it did."),
    "export": ("aimgraph.cli.export:export_command", "Transform MODEL and export it to ONNX."),
    "draw": ("aimgraph.cli.draw:draw_command", "Draw a plan: which layers of MODEL read, and how much."),
    "bench": ("aimgraph.cli.bench:bench_command", "Measure what memories cost MODEL, form beside form."),
    "experiment": ("aimgraph.cli.experiment:experiment_group", "Find out whether a memory helps."),
    "memory": ("aimgraph.cli.memory:memory_group", "List, compare and merge saved memories."),
    "report": ("aimgraph.cli.report:report_command", "Write a page that shows MODEL and its memory."),
    "widen": ("aimgraph.cli.widen:widen_command", "Widen MODEL, and show what has grown and what stays."),
    "zoo": ("aimgraph.cli.zoo:zoo_group", "Check whole lists of models."),
}
"""Name -> where the command is, and what ``aimgraph --help`` says of it."""


@click.group(
    cls=LazyGroup,
    places=COMMANDS,
    epilog=MODEL_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__)
def cli() -> None:
    """Give any PyTorch network a memory that every layer can read."""


def main() -> None:
    """Run the command line; every `AimgraphError` becomes a message and an exit code."""
    warnings.showwarning = _show_warning
    try:
        cli.main(prog_name="aimgraph", standalone_mode=True)
    except AimgraphError as error:
        click.echo(f"aimgraph: {type(error).__name__}: {error}", err=True)
        sys.exit(_exit_code(error))
    except Exception:
        import traceback

        traceback.print_exc()
        click.echo("aimgraph: this is a bug; please report it with the lines above", err=True)
        sys.exit(EXIT_BUG)


def _exit_code(error: AimgraphError) -> int:
    if isinstance(error, ConfigError | ExampleInputError | CheckpointError):
        return EXIT_USAGE
    return EXIT_EXPORT if isinstance(error, ExportError) else EXIT_MODEL


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"aimgraph: {message}", err=True)
