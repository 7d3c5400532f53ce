"""Tables and a picture of `benchmarks.starts`' results.

Run as ``python -m benchmarks.starts_table --out benchmarks/results``: prints a table for each task and kind of memory,
and writes ``starts.md`` and ``starts.png``. It measures nothing.
"""

import argparse
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.learning.tasks import tasks

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

    def best_rate(self, start: str) -> float:
        """The rate with the best mean; the smaller one of two."""
        best = self.better(self.mean(start, rate) for rate in self.scores[start])
        return next(rate for rate in sorted(self.scores[start]) if self.mean(start, rate) == best)

    def worst_rate(self, start: str) -> float:
        """The rate with the worst mean."""
        means = {rate: self.mean(start, rate) for rate in self.scores[start]}
        return (max if self.by_steps else min)(means, key=lambda rate: means[rate])

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
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("nan")
    return f"{group.shown(statistics.fmean(found))} ± {group.shown(error)}"


def _cell(group: Group, start: str, rate: float) -> str:
    """Mean, and how many seeds failed."""
    if rate not in group.scores[start]:
        return ""
    failed = group.failed[start][rate]
    return group.shown(group.mean(start, rate)) + (f" ({failed} failed)" if failed else "")


def draw(found: list[Group], path: Path) -> None:
    """One panel for each group: the mean over the rate, a line for each start; bars are standard errors."""
    from matplotlib import pyplot as plt

    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.2 * columns, 4 * rows), squeeze=False, layout="constrained")
    for axis, group in zip(axes.flat, found, strict=False):
        _panel(axis, group)
    for axis in list(axes.flat)[len(found) :]:
        axis.set_axis_off()
    handles = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


COLOURS = {"zero_reads": "tab:blue", "zero_values": "tab:orange", "drawn": "tab:green", "coordinates": "tab:red"}
DASHES = ("-", "--", "-.", ":", (0, (1, 3)))


def _panel(axis: Any, group: Group) -> None:
    seen: dict[str, int] = {}
    for start in _in_order(group.scores):
        kind = start.replace(",", "").split(" ")[0]
        dash = DASHES[seen.setdefault(kind, 0) % len(DASHES)]
        seen[kind] += 1
        rates = sorted(group.scores[start])
        found = [group.scores[start][rate] for rate in rates]
        errors = [statistics.stdev(one) / len(one) ** 0.5 if len(one) > 1 else 0 for one in found]
        means = [statistics.fmean(one) for one in found]
        axis.errorbar(rates, means, errors, label=start, color=COLOURS.get(kind, "grey"), linestyle=dash, capsize=2)
    axis.set(xscale="log", xlabel="Adam's rate", ylabel="steps to 90 %" if group.by_steps else "accuracy")
    axis.set_title(f"{group.task}, {group.memory} memory", fontsize=10)


def _in_order(scores: Mapping[str, Any]) -> list[str]:
    from benchmarks.starts import STARTS

    order = [str(start) for start in STARTS]
    return sorted(scores, key=lambda start: order.index(start) if start in order else -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out: Path = parser.parse_args().out
    paths = [out / f"starts_{name}.json" for name in tasks()]
    found = [group for path in paths if path.exists() for group in groups(path)]
    text = "\n".join(markdown(group) for group in found)
    (out / "starts.md").write_text(text)
    draw(found, out / "starts.png")
    print(text)


if __name__ == "__main__":
    main()
