"""``aimgraph transform``: a model with memory, compared with its base, and written as asked for."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aimgraph.cli import known
from aimgraph.cli.asked import Asked
from aimgraph.cli.click_parts import Names, replaced
from aimgraph.cli.compare import EXIT_DIFFERENT, transformed
from aimgraph.cli.options import MODEL_EPILOG, NEW_FILE, NEW_FOLDER, model_options, plan_options
from aimgraph.cli.output import console, json_text
from aimgraph.errors import ConfigError

if TYPE_CHECKING:
    from aimgraph.api.to_source import SourceReport
    from aimgraph.checkpoint.entries import What
    from aimgraph.emit.module import AimModule


@click.command("transform", epilog=MODEL_EPILOG)
@model_options
@plan_options
@click.option("--dump", type=NEW_FOLDER, metavar="FOLDER", help="Write the graph after every pass into this folder.")
@replaced("--save", "--checkpoint FOLDER", type=NEW_FILE)
@click.option("--checkpoint", type=NEW_FOLDER, metavar="FOLDER", help="Save the memory into this folder.")
@click.option("--what", type=Names(known.WHATS.value), help="What --checkpoint saves; by default the memory.")
@click.option("--code", is_flag=True, help="Print the emitted forward as Python.")
@click.option(
    "--to-source",
    type=NEW_FOLDER,
    metavar="FOLDER",
    help="Write it as plain PyTorch into this folder; also --source ./FOLDER.",
)
@click.option(
    "--passes",
    metavar="PASS{OPTION=VALUE},...",
    help='Run these passes in order, e.g. "widen{parameters=1.5},memory{shape=(7,7,4)}".',
)
def transform_command(
    asked: Asked, costs: bool, every_layer: bool, dump: str | None, code: bool, passes: str | None, **writes: Any
) -> None:
    """Transform MODEL and compare the result with it.

    The comparison is bit for bit. Where --passes widen MODEL, the result is compared with the widened one.
    """
    if writes["what"] and not writes["checkpoint"]:
        raise ConfigError(f"--what {writes['what']} says what --checkpoint saves: give --checkpoint FOLDER, too")
    if isinstance(asked.memory["source"], Path):
        writes["to_source"] = asked.memory.pop("source")
    aim, report, history = transformed(asked, dump, passes)
    from aimgraph.api.transform import plan

    planned = plan(aim)
    written = _write(aim, **writes)
    if asked.as_json:
        ran = [asdict(entry) for entry in history]
        extra: dict[str, Any] = {"code": aim.code} if code else {}
        extra |= {"source": written.to_dict()} if written else {}
        click.echo(json_text(planned.to_dict() | {"passes": ran, "verify": report.to_dict()} | extra))
    else:
        planned.print(console(), costs=costs, every_layer=every_layer)
        click.echo("passes: " + ", ".join(f"{entry.name} {entry.seconds * 1000:.0f} ms" for entry in history))
        for text in (str(report), str(written or ""), aim.code if code else ""):
            if text:
                click.echo(text)
    sys.exit(0 if report.ok else EXIT_DIFFERENT)


def _write(
    aim: "AimModule", save: str | None, checkpoint: str | None, what: "What | None", to_source: str | Path | None
) -> "SourceReport | None":
    """Write what was asked for; what was written as plain PyTorch, if anything was."""
    from aimgraph.api.to_source import to_source as write_source
    from aimgraph.checkpoint.save import save as save_checkpoint

    if save:
        _save_state(aim, Path(save))
    if checkpoint:
        save_checkpoint(aim, checkpoint, what=what or "memory")
    return write_source(aim, to_source) if to_source else None


def _save_state(aim: "AimModule", path: Path) -> None:
    from safetensors.torch import save_file

    from aimgraph.checkpoint.values import state_of

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    save_file({key: value.detach().clone().contiguous() for key, value in state_of(aim).items()}, str(draft))
    draft.replace(path)
