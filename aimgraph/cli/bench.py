"""``aimgraph bench``: what memories cost a model, measured."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from aimgraph.bench import FROZEN, BenchReport, Setting, bench, draw_bench, peak_alone, print_bench
from aimgraph.cli.options import Asked, model_options
from aimgraph.cli.output import console, json_text


@click.command("bench")
@model_options
@click.option("--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Rounds that count.")
@click.option("--device", default="cpu", show_default=True, help="Device of torch, e.g. cuda.")
@click.option("--autocast", type=click.Choice(["bfloat16", "float16"]), help="Compute in this dtype.")
@click.option("--channels-last", is_flag=True, help="Lay weights and inputs out with channels last.")
@click.option("--compile", "compiled", is_flag=True, help="Put every form through torch.compile.")
@click.option("--only", type=click.Choice(["training", "inference"]), help="Measure one of the two.")
@click.option("--frozen", is_flag=True, help="Measure ways to train a little beside a frozen MODEL, and all of it.")
@click.option("--form", "forms", multiple=True, help="Measure this form; by default all. Repeatable.")
@click.option("--out", type=click.Path(file_okay=False), help="Write bench.json and bench.png into this folder.")
def bench_command(
    asked: Asked, only: str | None, frozen: bool, forms: tuple[str, ...], out: str | None, **settings: Any
) -> None:
    """Measure what memories cost MODEL, form beside form, in this process.

    Forms: base; floor, the base with one plain learned map per site, the least a per-site memory can cost; split;
    concat; for inference also folded, and all three with batch normalisation fused. The batch is that of --input.

    With --frozen: full, all of MODEL is trained; biases; lora, of rank 8 on every layer (needs peft); memory, on a
    frozen MODEL; lean, the same where only what the gradients need is kept. The peak is that of one step over the idle
    memory of a process of its own.
    """
    setting = Setting(**settings, training=only != "inference", inference=only != "training" and not frozen)
    forms = forms or (FROZEN if frozen else ())
    base, errors = asked.base(), Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("building the forms", total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        inputs, configs = asked.example_inputs(), asked.configs()
        report = bench(base, inputs, configs, setting, forms=forms or None, progress=progress)
        if frozen:
            report = with_fresh_peaks(report, asked, progress)
    if out:
        _write(report, Path(out))
    if asked.as_json:
        click.echo(json_text(report.to_dict()))
    else:
        print_bench(report, console())


def with_fresh_peaks(report: BenchReport, asked: Asked, progress: Callable[[str, int, int], None]) -> BenchReport:
    """The report with the peak of each form as a process of its own has it.

    Args:
        report: Of forms of `FROZEN`.
        asked: What was measured.
        progress: As for `aimgraph.bench.bench`.
    """
    costs, spawn = dict(report.forms), multiprocessing.get_context("spawn")
    for done, (form, cost) in enumerate(report.forms.items()):
        progress("peaks, each in a process of its own", done, len(costs))
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            costs[form] = replace(cost, peak=pool.submit(_peak, asked, report.setting, form).result())
    return replace(report, forms=costs)


def _peak(asked: Asked, setting: Setting, form: str) -> int | None:
    return peak_alone(asked.base(), asked.example_inputs(), asked.configs(), setting, form)


def _write(report: BenchReport, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json_text(report.to_dict()) + "\n", encoding="utf-8")
    draw_bench({f"{report.model}\n{sum(report.values):,} values": report}, folder / "bench.png")
