"""What was measured, as a table and as a picture."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aimgraph.bench.frozen import FROZEN
from aimgraph.bench.run import WHAT, BenchReport
from aimgraph.planning.picture import blank

_COLOURS = {"floor": "#bbbbbb", "split": "#4477aa", "concat": "#ee6677", "folded": "#228833"}
_COLOURS |= {"biases": "#bbbbbb", "lora": "#ee6677", "memory": "#4477aa", "lean": "#228833"}
_COLOURS |= {"fused floor": "#dddddd", "fused folded": "#66ccee"}


_LEAST = 0.005
"""Where an axis of shares begins."""

_WIDEST = 1.6
"""Ratios beyond this one are written beside the picture."""


def print_bench(report: BenchReport, console: Console) -> None:
    """Print medians, ratios with their intervals, and what was counted."""
    table = Table(title=_title(report), title_justify="left")
    timed = [what for what in WHAT if any(what in cost.seconds for cost in report.forms.values())]
    for column in ("form", *(f"{what}, ms" for what in timed), "parameters", "GFLOP", "saved, MB", "peak, MB"):
        table.add_column(column, justify="left" if column == "form" else "right")
    for form, cost in report.forms.items():
        times = [_milliseconds(report, form, what) for what in timed]
        sizes = ["-" if size is None else f"{size / 1e6:,.1f}" for size in (cost.saved, cost.peak)]
        table.add_row(form, *times, f"{cost.parameters:,}", f"{cost.flops / 1e9:,.3f}", *sizes)
    console.print(table)
    for what in timed:
        ratios = Table(title=f"{what}, ratios of medians with 95 % intervals", title_justify="left")
        ratios.add_column("form / reference")
        ratios.add_column("ratio", justify="right")
        for form, to in report.pairs(what):
            ratios.add_row(f"{form} / {to}", str(report.ratio(form, to, what)))
        console.print(ratios)


def draw_bench(reports: Mapping[str, BenchReport], path: str | os.PathLike[str]) -> Path:
    """Write a picture: for every network what each form takes, over what its base takes.

    Left: training step. Right: inference. Lines are 95 % intervals; fused forms are over the fused base. For ways to
    train beside a frozen base: what each keeps, its peak and its step, over those of training all.

    Args:
        reports: Title -> what was measured.
        path: Where to write; the ending chooses the format (png, svg, pdf).

    Raises:
        ExportError: matplotlib is not installed.
    """
    figure = blank(height=1.8 + (0.6 if _are_frozen(reports) else 1.1) * len(reports))
    if _are_frozen(reports):
        panels = figure.subplots(1, len(_SHARES), sharey=True)
        for axes, title in zip(panels, _SHARES, strict=True):
            _points(axes, reports, title)
        panels[0].set(xscale="log", xlim=(_LEAST, 2))
    else:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, what in zip(panels, ("training step", "inference"), strict=True):
            _bars(axes, reports, what)
    panels[0].set_yticks(range(len(reports)), list(reports))
    panels[0].invert_yaxis()
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, len(labels)), frameon=False)
    written = Path(path)
    figure.savefig(written, dpi=120)
    return written


def _are_frozen(reports: Mapping[str, BenchReport]) -> bool:
    return all("full" in report.forms for report in reports.values())


def _bytes(what: str) -> Callable[[BenchReport, str], float | None]:
    def share(report: BenchReport, form: str) -> float | None:
        some, all_ = (getattr(report.forms[one], what) for one in (form, "full"))
        return some / all_ if some is not None and all_ else None

    return share


def _time(report: BenchReport, form: str) -> float | None:
    what = WHAT[0]
    return report.ratio(form, "full", what).value if what in report.forms[form].seconds else None


_SHARES: dict[str, Callable[[BenchReport, str], float | None]] = {
    "kept for backward": _bytes("saved"),
    "peak of a step": _bytes("peak"),
    "time of a step": _time,
}


def _points(axes: Any, reports: Mapping[str, BenchReport], title: str) -> None:
    """One panel of ways to train: a row a network."""
    there = [form for form in FROZEN[1:] if any(form in report.forms for report in reports.values())]
    for place, form in enumerate(there):
        shares = {
            number + 0.16 * (place - (len(there) - 1) / 2): _SHARES[title](report, form)
            for number, report in enumerate(reports.values())
            if form in report.forms
        }
        known = {row: share for row, share in shares.items() if share is not None}
        axes.scatter(list(known.values()), list(known), s=28, color=_COLOURS[form], label=form)
        axes.hlines(list(known), _LEAST, list(known.values()), color=_COLOURS[form], linewidth=1)
    axes.axvline(1, color="0.6", linewidth=1, linestyle="--")
    axes.set(title=f"{title} / all trained", xlim=(0, None), ylim=(-0.5, len(reports) - 0.5))


def _bars(axes: Any, reports: Mapping[str, BenchReport], what: str) -> None:
    there = {form for report in reports.values() for form, cost in report.forms.items() if what in cost.seconds}
    shown = [form for form in _COLOURS if form in there]
    height = 0.8 / max(1, len(shown))
    for place, form in enumerate(shown):
        rows = [
            (number, report.ratio(form, _reference(form, report), what))
            for number, report in enumerate(reports.values())
            if form in report.forms and what in report.forms[form].seconds
        ]
        values = [ratio.value - 1 for _, ratio in rows]
        errors = [[r.value - r.low for _, r in rows], [r.high - r.value for _, r in rows]]
        positions = [number - 0.4 + (place + 0.5) * height for number, _ in rows]
        for position, (_, ratio) in zip(positions, rows, strict=True):
            if ratio.value > _WIDEST:
                axes.text(_WIDEST, position, f" {ratio.value:.1f}", va="center", fontsize=7)
        axes.barh(
            positions, values, height, left=1, xerr=errors, color=_COLOURS[form], label=form, error_kw={"lw": 0.8}
        )
    if axes.get_xlim()[1] > _WIDEST:  # the forms that are worth comparing lie close together
        axes.set_xlim(0.85, _WIDEST)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_xlabel(f"{what} / base")
    axes.spines[["top", "right"]].set_visible(False)


def _reference(form: str, report: BenchReport) -> str:
    if "full" in report.forms:
        return "full"
    return "fused base" if form.startswith("fused") else "base"


def _milliseconds(report: BenchReport, form: str, what: str) -> str:
    if what not in report.forms[form].seconds:
        return "-"
    found = report.time(form, what)
    return f"{found.median * 1000:,.2f} ({found.low * 1000:,.2f} - {found.high * 1000:,.2f})"


def _title(report: BenchReport) -> str:
    setting = report.setting
    sizes = ", ".join("x".join(map(str, shape)) for shape in report.inputs)
    extras = [setting.device, setting.autocast, "channels-last" if setting.channels_last else None]
    extras += ["torch.compile" if setting.compiled else "eager"]
    values = " + ".join(f"{size:,}" for size in report.values)
    return (
        f"{report.model} on {sizes}; {values} values read at {report.sites} sites; "
        f"{', '.join(filter(None, extras))}, {setting.rounds} rounds, medians (fastest - slowest)"
    )
