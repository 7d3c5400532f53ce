"""``aimgraph bench``: what memories cost a model, measured."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aimgraph.cli import known
from aimgraph.cli.asked import Asked
from aimgraph.cli.click_parts import Names
from aimgraph.cli.options import MODEL_EPILOG, NEW_FOLDER, model_options
from aimgraph.cli.output import console, json_text
from aimgraph.cli.progress import Estimate
from aimgraph.cli.progress import progress as shown_progress

if TYPE_CHECKING:
    from aimgraph.bench import BenchReport, Setting

_WIDE = 140
"""Columns of the tables where no terminal sets a width."""


@click.command("bench", epilog=MODEL_EPILOG)
@model_options
@click.option(
    "--rounds", type=click.IntRange(min=1), default=15, show_default=True, metavar="N", help="Rounds that count."
)
@click.option("--device", metavar="DEVICE", default="cpu", show_default=True, help="Device of torch, e.g. cuda.")
@click.option("--autocast", type=Names(["bfloat16", "float16"]), help="Compute in this dtype.")
@click.option("--channels-last", is_flag=True, help="Lay weights and inputs out with channels last.")
@click.option("--compile", "compiled", is_flag=True, help="Put every form through torch.compile.")
@click.option("--only", type=Names(["training", "inference"]), help="Measure one of the two.")
@click.option("--frozen", is_flag=True, help="Measure ways to train a little beside a frozen MODEL, and all of it.")
@click.option(
    "--form",
    "forms",
    multiple=True,
    metavar="FORM",
    help=f"Measure this form: {', '.join(known.FORMS.value)}; with --frozen {', '.join(known.FROZEN_FORMS.value)}. "
    "By default all. Repeatable.",
)
@click.option("--out", type=NEW_FOLDER, metavar="FOLDER", help="Write bench.json and bench.png into this folder.")
def bench_command(
    asked: Asked, only: str | None, frozen: bool, forms: tuple[str, ...], out: str | None, **settings: Any
) -> None:
    """Measure what memories cost MODEL, form beside form.

    Forms: base; floor, the base with one plain learned map per site, the least a per-site memory can cost; split;
    concat; for inference also folded, and all three with batch normalisation fused. The batch is that of --input.

    With --frozen: full, all of MODEL is trained; biases; lora, of rank 8 on every layer (needs peft); memory, on a
    frozen MODEL; lean, the same where only what the gradients need is kept. The peak is that of one step over the idle
    memory of a process of its own.

    After the first round a line on stderr says how long the others will take, roughly.
    """
    with shown_progress(f"loading {asked.model}") as shown:
        from aimgraph.bench import FROZEN, Setting, bench, print_bench

        setting = Setting(**settings, training=only != "inference", inference=only != "training" and not frozen)
        wanted = forms or (FROZEN if frozen else None)
        told = Estimate(shown, setting.rounds)
        report = bench(asked.base(), asked.example_inputs(), asked.configs(), setting, forms=wanted, progress=told)
        if frozen:
            report = with_fresh_peaks(report, asked, shown.step)
    if out:
        _write(report, Path(out))
    if asked.as_json:
        click.echo(json_text(report.to_dict()))
    else:
        print_bench(report, console(_WIDE))


def with_fresh_peaks(report: "BenchReport", asked: Asked, progress: Callable[[str, int, int], None]) -> "BenchReport":
    """The report with the peak of each form as a process of its own has it.

    Args:
        report: Of forms of `aimgraph.bench.FROZEN`.
        asked: What was measured.
        progress: As for `aimgraph.bench.bench`.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from dataclasses import replace

    costs, spawn = dict(report.forms), multiprocessing.get_context("spawn")
    for done, (form, cost) in enumerate(report.forms.items()):
        progress("peaks, each in a process of its own", done, len(costs))
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            costs[form] = replace(cost, peak=pool.submit(_peak, asked, report.setting, form).result())
    return replace(report, forms=costs)


def _peak(asked: Asked, setting: "Setting", form: str) -> int | None:
    from aimgraph.bench import peak_alone

    return peak_alone(asked.base(), asked.example_inputs(), asked.configs(), setting, form)


def _write(report: "BenchReport", folder: Path) -> None:
    from aimgraph.bench import draw_bench

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json_text(report.to_dict()) + "\n", encoding="utf-8")
    draw_bench({f"{report.model}\n{sum(report.values):,} values": report}, folder / "bench.png")
