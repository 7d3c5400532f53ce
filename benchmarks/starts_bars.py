"""Does the chosen start of a memory hold what is asked of it? On seeds that it was not chosen on.

Run as ``python -m benchmarks.starts_bars --start "zero_reads 0.5" --out benchmarks/results`` after `benchmarks.starts`:

- position: of ten seeds, at rates 3e-3 and 1e-2, at least nine reach 90 % within 800 steps; at 3e-3 the median is at
  most 0.6 times that of values from N(0, 0.02^2), and at most 1.2 times that of fixed coordinates;
- digits on the frozen EfficientNet-Lite0, 40 steps, three seeds, rates 3e-3, 1e-2 and 3e-2: at least 90 % in each run.

Runs go to ``starts_bars_<task>.json``, as those of `benchmarks.starts`, the verdict to ``starts_bars.md``.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path

from benchmarks.learning.tasks import tasks
from benchmarks.starts import STARTS, Run, measure_all, starts_for

FIRST_SEED = 100
FORMER, FIXED = "noise 0.02", "coordinates"
POSITION_RATES, DIGITS_RATES = (3e-3, 1e-2), (3e-3, 1e-2, 3e-2)
POSITION_SEEDS, DIGITS_SEEDS = 10, 3
EVERY = 10
WITHIN, OF_FORMER, OF_FIXED, ENOUGH = 800, 0.6, 1.2, 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [str(start) for start in STARTS]
    parser.add_argument(
        "--start", nargs="+", choices=names, required=True, help="what was chosen, and others beside it"
    )
    parser.add_argument("--task", nargs="+", choices=["position", "digits"], default=["position", "digits"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    given = parser.parse_args()
    chosen: list[str] = given.start
    if "position" in given.task:
        run("position", [*chosen, FORMER, FIXED], POSITION_RATES, POSITION_SEEDS, given.out)
    if "digits" in given.task:
        run("digits", [*chosen, FORMER], DIGITS_RATES, DIGITS_SEEDS, given.out)
    text = verdict(given.out)
    (given.out / "starts_bars.md").write_text(text)
    print(text)


def run(task: str, names: list[str], rates: tuple[float, ...], seeds: int, out: Path) -> None:
    """Do the runs that are missing."""
    asked = tasks()[task]
    if asked.recipe.target is not None:  # ratios of steps want a closer look
        asked = replace(asked, recipe=replace(asked.recipe, every=EVERY))
    starts = [start for start in starts_for(asked) if str(start) in names]
    runs = [
        Run("static", start, rate, FIRST_SEED + seed) for seed in range(seeds) for start in starts for rate in rates
    ]
    measure_all(task, asked, runs, out, "starts_bars")


def verdict(out: Path) -> str:
    """The tables of the bars that were measured."""
    parts = [(out / "starts_bars_position.json", _position), (out / "starts_bars_digits.json", _digits)]
    return "\n".join(make(path) for path, make in parts if path.exists())


Scores = dict[str, dict[float, list[float]]]


def _scores(path: Path, field: str) -> Scores:
    """Start -> rate -> what was seen, one for each seed; infinity for steps that were not reached."""
    found: Scores = {}
    for one in json.loads(path.read_text())["runs"]:
        value = one["accuracy"][-1] if field == "accuracy" else one["reached"] or float("inf")
        found.setdefault(one["start"], {}).setdefault(one["rate"], []).append(value)
    return found


def _position(path: Path) -> str:
    scores = _scores(path, "reached")
    lines = [
        f"| start | within {WITHIN} steps at {' / '.join(f'{rate:g}' for rate in POSITION_RATES)} "
        f"| median steps | median / {FORMER}, at 3e-3 | median / {FIXED}, at 3e-3 | holds |",
        "|---|---:|---:|---:|---:|---|",
    ]
    medians = {start: {rate: statistics.median(found) for rate, found in of.items()} for start, of in scores.items()}
    slow = POSITION_RATES[0]
    for start, of in scores.items():
        counts = [sum(steps <= WITHIN for steps in of[rate]) for rate in POSITION_RATES]
        shares = medians[start][slow] / medians[FORMER][slow], medians[start][slow] / medians[FIXED][slow]
        steady = all(count >= 0.9 * len(of[rate]) for count, rate in zip(counts, POSITION_RATES, strict=True))
        holds = steady and shares[0] <= OF_FORMER and shares[1] <= OF_FIXED
        cells = [f"{count} of {len(of[rate])}" for count, rate in zip(counts, POSITION_RATES, strict=True)]
        steps = [f"{medians[start][rate]:g}" for rate in POSITION_RATES]
        lines.append(
            f"| {start} | {' / '.join(cells)} | {' / '.join(steps)} | {shares[0]:.2f} | {shares[1]:.2f} "
            f"| {'yes' if holds else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def _digits(path: Path) -> str:
    scores = _scores(path, "accuracy")
    lines = [
        f"| start: accuracy of each seed, % | {' | '.join(f'{rate:g}' for rate in DIGITS_RATES)} | holds |",
        f"|---|{'---:|' * len(DIGITS_RATES)}---|",
    ]
    for start, of in scores.items():
        cells = [", ".join(f"{100 * one:.1f}" for one in of.get(rate, [])) for rate in DIGITS_RATES]
        holds = all(one >= ENOUGH for found in of.values() for one in found)
        lines.append(f"| {start} | {' | '.join(cells)} | {'yes' if holds else 'no'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
