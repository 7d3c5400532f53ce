"""Tables and a picture of `benchmarks.starts`' results.

Run as ``python -m benchmarks.starts_table --out benchmarks/results``: prints a table for each task and kind of memory,
and writes ``starts.md`` and ``starts.png``. It measures nothing.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.learning.tasks import tasks
from benchmarks.starts import STARTS

ALWAYS = ("coordinates", "noise, min(1, 25/n) 0.5")
"""Starts that are shown wherever they were measured."""
LOWEST = 0.6
"""Accuracies below it are not drawn."""
MANY = 10
"""Seeds of the cells of the first table."""
SHORT = 0.9
"""A run without a target fails if its accuracy is below this share of the best mean of its task."""


@dataclass(frozen=True)
class Group:
    """The runs of one task with one kind of memory.

    Attributes:
        task: Name of the task.
        memory: Kind of memory.
        settings: Of the task.
        scores: Start -> rate -> one number for each seed, in the order of the seeds: the steps to the target (the most
            steps where it was not reached) or the last accuracy.
        failed: Start -> rate -> number of failed seeds.
    """

    task: str
    memory: str
    settings: Mapping[str, Any]
    scores: dict[str, dict[float, list[float]]]
    failed: dict[str, dict[float, int]]

    @property
    def by_steps(self) -> bool:
        """Whether steps are counted, so that less is better."""
        return self.settings["target"] is not None

    def better(self, scores: Iterable[float]) -> float:
        """The best of some."""
        return min(scores) if self.by_steps else max(scores)

    def mean(self, start: str, rate: float) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.scores[start][rate])

    @property
    def grid(self) -> list[float]:
        """The rates that every start was measured with."""
        return sorted(set.intersection(*(set(found) for found in self.scores.values())))

    def best_rate(self, start: str) -> float:
        """The rate of the grid with the best mean; the smaller one of two."""
        best = self.better(self.mean(start, rate) for rate in self.grid)
        return next(rate for rate in self.grid if self.mean(start, rate) == best)

    def worst_rate(self, start: str) -> float:
        """The rate of the grid with the worst mean."""
        return (max if self.by_steps else min)(self.grid, key=lambda rate: self.mean(start, rate))

    def shown(self, score: float) -> str:
        """Steps, or percent."""
        return f"{score:,.0f}" if self.by_steps else f"{100 * score:.1f}"


def groups(path: Path, seeds: range | None = None) -> list[Group]:
    """What a journal holds, one group for each kind of memory."""
    data = json.loads(path.read_text())
    runs = [run for run in data["runs"] if seeds is None or run["seed"] in seeds]
    kinds = dict.fromkeys(run["memory"] for run in runs)
    name = path.stem.rpartition("_")[2]
    return [_group(name, kind, data["settings"], [run for run in runs if run["memory"] == kind]) for kind in kinds]


def _group(task: str, memory: str, settings: Mapping[str, Any], runs: list[dict[str, Any]]) -> Group:
    scores: dict[str, dict[float, list[float]]] = {}
    target = settings["target"]
    for run in sorted(runs, key=lambda one: one["seed"]):
        score = run["accuracy"][-1] if target is None else run["reached"] or settings["steps"]
        scores.setdefault(run["start"], {}).setdefault(run["rate"], []).append(score)
    failed: dict[str, dict[float, int]] = {start: dict.fromkeys(rates, 0) for start, rates in scores.items()}
    means = [statistics.fmean(found) for rates in scores.values() for found in rates.values()]
    for run in runs:
        short = run["reached"] is None if target is not None else run["accuracy"][-1] < SHORT * max(means)
        failed[run["start"]][run["rate"]] += short
    return Group(task, memory, settings, scores, failed)


def markdown(group: Group) -> str:
    """A table: a row for each start, the best first."""
    rates = sorted({rate for found in group.scores.values() for rate in found})
    unit = "steps to 90 %" if group.by_steps else "accuracy, %"
    best = {start: group.mean(start, group.best_rate(start)) for start in group.scores}
    lines = [
        f"**{group.task}, {group.memory} memory**: {group.settings['task']}; {unit}.",
        "",
        f"| start | seeds | best rate | there | worst rate | there | {' | '.join(f'{rate:g}' for rate in rates)} |",
        f"|---|---:|---:|---:|---:|---:|{'---:|' * len(rates)}",
    ]
    for start in sorted(best, key=lambda one: best[one], reverse=not group.by_steps):
        top, low = group.best_rate(start), group.worst_rate(start)
        cells = [_cell(group, start, rate) for rate in rates]
        lines.append(
            f"| {start} | {len(group.scores[start][top])} | {top:g} | {_with_error(group, start, top)} "
            f"| {low:g} | {group.shown(group.mean(start, low))} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def _with_error(group: Group, start: str, rate: float) -> str:
    """Mean and standard error."""
    found = group.scores[start][rate]
    error = f" ± {group.shown(statistics.stdev(found) / len(found) ** 0.5)}" if len(found) > 1 else ""
    return group.shown(statistics.fmean(found)) + error


def _cell(group: Group, start: str, rate: float) -> str:
    """Mean, and how many seeds failed."""
    if rate not in group.scores[start]:
        return ""
    failed = group.failed[start][rate]
    return group.shown(group.mean(start, rate)) + (f" ({failed} failed)" if failed else "")


def of_many_seeds(group: Group) -> Group | None:
    """The cells of a group that have `MANY` seeds; None where no start has two of them."""
    cells = {
        start: {rate: found for rate, found in rates.items() if len(found) >= MANY}
        for start, rates in group.scores.items()
    }
    scores = {start: rates for start, rates in cells.items() if len(rates) > 1}
    return replace(group, scores=scores) if scores else None


def summary(found: list[Group]) -> str:
    """One row for each of the `main_starts`: its mean at the best and at the worst rate of each group's grid."""
    heads = [one.task if one.memory == "static" else f"{one.task}, {one.memory}" for one in found]
    units = ["steps" if one.by_steps else "%" for one in found]
    grids = [f"{one.grid[0]:g} to {one.grid[-1]:g}" for one in found]
    titles = [f"{head}, {unit}; {grid}" for head, unit, grid in zip(heads, units, grids, strict=True)]
    lines = [f"| start: best rate / worst rate | {' | '.join(titles)} |", f"|---|{'---:|' * len(found)}"]
    lines += [
        f"| {start} | {' | '.join(_best_and_worst(group, start) for group in found)} |" for start in main_starts(found)
    ]
    return "\n".join(lines) + "\n"


def main_starts(found: list[Group]) -> list[str]:
    """Those that at least half of the groups have, in the order of `benchmarks.starts`, and `ALWAYS`."""
    counts = {str(start): sum(str(start) in one.scores for one in found) for start in STARTS}
    return [name for name, count in counts.items() if count >= len(found) / 2 or (count and name in ALWAYS)]


def _best_and_worst(group: Group, start: str) -> str:
    if start not in group.scores:
        return ""
    ends = group.best_rate(start), group.worst_rate(start)
    return " / ".join(group.shown(group.mean(start, rate)) for rate in ends)


def draw(found: list[Group], path: Path) -> None:
    """One panel for each group: the mean over the rate, a line for each main start; bars are standard errors."""
    from matplotlib import pyplot as plt

    columns = min(len(found), 4)
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.6 * rows), squeeze=False, layout="constrained")
    looks = {
        start: (f"C{number % 10}", "-" if number < 10 else "--") for number, start in enumerate(main_starts(found))
    }
    for axis, group in zip(axes.flat, found, strict=False):
        _panel(axis, group, looks)
    for axis in list(axes.flat)[len(found) :]:
        axis.set_axis_off()
    lines = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend([lines[start] for start in looks], list(looks), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _panel(axis: Any, group: Group, looks: Mapping[str, tuple[str, str]]) -> None:
    for start in (one for one in looks if one in group.scores):
        rates = sorted(group.scores[start])
        found = [group.scores[start][rate] for rate in rates]
        errors = [statistics.stdev(one) / len(one) ** 0.5 if len(one) > 1 else 0 for one in found]
        means = [statistics.fmean(one) for one in found]
        colour, dash = looks[start]
        axis.errorbar(rates, means, errors, label=start, color=colour, linestyle=dash, marker="o", markersize=3)
    ticks = sorted({rate for rates in group.scores.values() for rate in rates})
    axis.set(xscale="log", xlabel="Adam's rate", ylabel="steps to 90 %" if group.by_steps else "accuracy")
    axis.set_xticks(ticks, [f"{rate:g}" for rate in ticks])
    axis.minorticks_off()
    if not group.by_steps:
        axis.set_ylim(bottom=max(axis.get_ylim()[0], LOWEST))
    axis.set_title(f"{group.task}, {group.memory} memory", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out: Path = parser.parse_args().out
    paths = [out / f"starts_{name}.json" for name in tasks()]
    found = [group for path in paths if path.exists() for group in groups(path)]
    many = [group for group in map(of_many_seeds, found) if group is not None]
    heads = [f"{MANY} seeds or more in each cell:", summary(many)]
    heads += ["All; the tables below say of how many seeds:", summary(found)]
    text = "\n".join([*heads, *(markdown(group) for group in found)])
    (out / "starts.md").write_text(text)
    draw(found, out / "starts.png")
    print(text)


if __name__ == "__main__":
    main()
