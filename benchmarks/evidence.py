"""The tables and the picture in docs/evidence.md, from the committed results of experiments.

Run as ``python -m benchmarks.evidence`` (or ``make evidence``); it measures nothing. Results come there by ``python -m
benchmarks.evidence --take out/experiments/NAME``, after ``aimgraph experiment run NAME``.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

from aimgraph.experiment.analysis import analysed
from aimgraph.experiment.report import picture, sentence
from aimgraph.experiment.report.formats import scale_of
from aimgraph.experiment.report.gathered import found, tested
from aimgraph.experiment.results import Experiment, read_experiment
from aimgraph.web.formats import brief, count

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "experiments"
PAGE, PICTURES = ROOT / "docs" / "evidence.md", ROOT / "docs" / "pictures"
MARKS = re.compile(r"(<!-- evidence ([\w-]+): make evidence -->\n).*?(<!-- end of evidence -->)", flags=re.DOTALL)
CONTROLS = ("position", "sensor-50", "sensor-400", "switch", "drift", "drift-mixed", "none")
SHOWN = "sensor-50"
"""The experiment in README's picture."""


def text_of(name: str) -> str:
    """What stands between two marks."""
    lines = _controls() if name == "controls" else _experiment(read_experiment(RESULTS / f"{name}.json"))
    return "\n".join(lines) + "\n"


def _experiment(experiment: Experiment) -> Iterator[str]:
    """The verdict, and a line for each arm."""
    scale = scale_of(experiment.metric)
    base = next((name for name, arm in experiment.recipe.arms.items() if arm.kind == "base"), "")
    yield f"{sentence(experiment)}"
    yield ""
    heads = f"{scale.name}, mean ± sd | above {base}, 95 % interval | trained parameters | kept, MB | s / epoch | rate"
    yield f"| arm | {heads} |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for name, facts in experiment.arms.items():
        one, score = found(experiment.comparisons, name, base), tested(experiment, name)
        gap = f"{scale.gap(one.mean)} {scale.interval(one.low, one.high)}" if one else ""
        kept = "" if facts.kept_bytes is None else f"{facts.kept_bytes / 1e6:.2g}"
        cells = [name, f"{scale.number(score.mean)} ± {scale.number(score.sd)}", gap, count(facts.trained), kept]
        cells += [brief(facts.seconds), "" if facts.rate is None or not facts.trained else f"{facts.rate:g}"]
        yield f"| {' | '.join(cells)} |"


def _controls() -> Iterator[str]:
    """Every prediction of every control, and what came."""
    yield "| control | predicted | seen | |"
    yield "|---|---|---|---|"
    for name in (name for name in CONTROLS if (RESULTS / f"{name}.json").exists()):
        for one in read_experiment(RESULTS / f"{name}.json").predicted:
            yield f"| {name} | {one.says} | {one.seen} | {'holds' if one.holds else '**does not hold**'} |"


def take(folder: Path) -> Path:
    """Put the results of an experiment with the committed ones.

    Args:
        folder: Where ``aimgraph experiment run`` has written its report.
    """
    experiment = analysed(read_experiment(folder / "results.json"))
    path = RESULTS / f"{experiment.recipe.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = experiment.to_dict()
    units = ",\n".join(json.dumps(one) for one in data.pop("units"))
    rest = json.dumps(data, indent=1)
    path.write_text(f'{rest.removesuffix("}").rstrip()},\n "units": [\n{units}\n]}}\n', encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--take", type=Path, nargs="+", default=[], help="folders of finished experiments")
    for folder in parser.parse_args().take:
        print(take(folder))
    if PAGE.exists():
        text = MARKS.sub(lambda mark: f"{mark.group(1)}{text_of(mark.group(2))}{mark.group(3)}", PAGE.read_text())
        PAGE.write_text(text, encoding="utf-8")
    if (path := RESULTS / f"{SHOWN}.json").exists():
        PICTURES.mkdir(parents=True, exist_ok=True)
        (PICTURES / "evidence.svg").write_text(picture(read_experiment(path)), encoding="utf-8")


if __name__ == "__main__":
    main()
