"""``aimgraph bench``: what memories cost a model, measured."""

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from aimgraph.bench import BenchReport, Setting, bench, draw_bench, print_bench
from aimgraph.cli.options import configs, example_inputs, model_options
from aimgraph.emit.parts import submodule
from aimgraph.models_zoo.loader import load_model


@click.command("bench")
@model_options
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Rounds that count.")
@click.option("--device", default="cpu", show_default=True, help="Device of torch, e.g. cuda.")
@click.option("--autocast", type=click.Choice(["bfloat16", "float16"]), help="Compute in this dtype.")
@click.option("--channels-last", is_flag=True, help="Lay weights and inputs out with channels last.")
@click.option("--compile", "compiled", is_flag=True, help="Put every form through torch.compile.")
@click.option("--only", type=click.Choice(["training", "inference"]), help="Measure one of the two.")
@click.option("--form", "forms", multiple=True, help="Measure this form; by default all. Repeatable.")
@click.option("--out", type=click.Path(file_okay=False), help="Write bench.json and bench.png into this folder.")
def bench_command(
    model: str,
    inputs: tuple[str, ...],
    as_json: bool,
    rounds: int,
    device: str,
    autocast: str | None,
    channels_last: bool,
    compiled: bool,
    only: str | None,
    forms: tuple[str, ...],
    out: str | None,
    **options: Any,
) -> None:
    """Measure what memories cost MODEL, form beside form, in this process.

    Forms: base; floor, the base with one plain learned map per site, the least a per-site memory can cost; split;
    concat; for inference also folded, and all three with batch normalisation fused. The batch is that of --input.
    """
    setting = Setting(
        rounds=rounds,
        device=device,
        autocast=autocast,
        channels_last=channels_last,
        compiled=compiled,
        training=only != "inference",
        inference=only != "training",
    )
    within = options.pop("within")
    base = load_model(model)
    part = base if within is None else submodule(base, within)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("building the forms", total=None)
        report = bench(
            part,
            example_inputs(inputs),
            configs(options),
            setting,
            forms=forms or None,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    if out:
        _write(report, Path(out))
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2))
        return
    shown = Console()
    print_bench(report, shown if shown.is_terminal else Console(width=140))


def _write(report: BenchReport, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    draw_bench({f"{report.model}\n{sum(report.values):,} values": report}, folder / "bench.png")
