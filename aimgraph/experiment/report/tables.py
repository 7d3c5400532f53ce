"""The tables of a report, as text and as numbers to sort by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from aimgraph.experiment.report.formats import chance, pair, rate, scale_of, seconds
from aimgraph.experiment.report.gathered import at_edge, is_declared, tested
from aimgraph.experiment.report.verdict import still
from aimgraph.experiment.results import Experiment
from aimgraph.experiment.statistics import Comparison
from aimgraph.web.formats import DASH, brief, count, number_of


@dataclass(frozen=True)
class Cell:
    """A place of a table.

    Attributes:
        text: What is shown.
        key: What rows are sorted by: a number, or None to sort by the text.
        tone: ``good``, ``bad`` or empty.
    """

    text: str
    key: float | None = None
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: Titles.
        rows: Cells, one for each column.
        numbers: Titles of those columns that hold numbers.
    """

    columns: tuple[str, ...]
    rows: list[list[Cell]]
    numbers: frozenset[str] = field(default_factory=frozenset)


def _number(text: str, key: float | None) -> Cell:
    return Cell(text, key if key is not None and math.isfinite(key) else -math.inf)


def arms_table(experiment: Experiment) -> Table:
    """What each arm reached and what it costs, one row an arm."""
    scale = scale_of(experiment.metric)
    unit = f", {scale.unit}" if scale.unit else ""
    numbers = (
        "rate", f"test {scale.name}{unit}", "sd", "seeds", "epochs", "trained", "added", "parameters",
        "multiply-adds", "kept bytes", "s / epoch",
    )  # fmt: skip
    return Table(("arm", "kind", *numbers), [_arm(experiment, arm) for arm in experiment.arms], frozenset(numbers))


def _arm(experiment: Experiment, arm: str) -> list[Cell]:
    facts, scale, scores = experiment.arms[arm], scale_of(experiment.metric), tested(experiment, arm)
    edge = " (edge)" if at_edge(experiment.recipe, facts) else ""
    spec = experiment.recipe.arms.get(arm)
    return [
        Cell(arm),
        Cell(spec.kind if spec is not None else DASH),
        _number(rate(facts.rate) + edge, facts.rate),
        _number(scale.number(scores.mean), scores.mean),
        _number(scale.number(scores.sd), scores.sd),
        _number(count(scores.seeds), scores.seeds),
        _number(count(facts.epochs), facts.epochs),
        _number(count(facts.trained), facts.trained),
        _number(count(facts.added), facts.added),
        _number(count(facts.parameters), facts.parameters),
        _number(brief(facts.macs), facts.macs),
        _number(brief(facts.kept_bytes, "B"), facts.kept_bytes),
        _number(seconds(facts.seconds), facts.seconds),
    ]


def comparisons_table(experiment: Experiment, comparisons: Sequence[Comparison]) -> Table:
    """Paired differences, the declared ones with their verdicts."""
    scale = scale_of(experiment.metric)
    unit = f", {scale.gap_unit}" if scale.gap_unit else ""
    numbers = (
        f"difference{unit}", "95 % interval", "pairs", "p", "level", "p, sign flips", "P(arm > base)", "detectable",
    )  # fmt: skip
    rows = [_compared(experiment, one) for one in comparisons]
    return Table(("comparison", "verdict", *numbers), rows, frozenset(numbers))


def _compared(experiment: Experiment, one: Comparison) -> list[Cell]:
    scale, declared = scale_of(experiment.metric), is_declared(experiment, one)
    finite = math.isfinite(one.mean)
    return [
        Cell(pair(one.arm, one.base)),
        verdict_cell(one, declared),
        _number(scale.gap(one.mean), one.mean),
        _number(scale.interval(one.low, one.high) if finite else DASH, one.low),
        _number(count(one.pairs), one.pairs),
        _number(chance(one.p), one.p),
        _number(f"{one.level:.3g}" if declared else DASH, one.level),
        _number(chance(one.p_flips) if finite else DASH, one.p_flips),
        _number(f"{one.above:.2f}" if finite else DASH, one.above),
        _number(scale.number(one.detectable), one.detectable),
    ]


def verdict_cell(one: Comparison, declared: bool) -> Cell:
    """The verdict of a comparison; only a declared one has any."""
    if not declared:
        return Cell("exploratory")
    if not math.isfinite(one.mean):
        return Cell("not comparable", tone="bad")
    return Cell(one.verdict, tone={"helps": "good", "hurts": "bad"}.get(one.verdict, ""))


def predictions_table(experiment: Experiment) -> Table:
    """What had to come out, and what did."""
    rows = [
        [Cell("holds", tone="good") if one.holds else Cell("does not hold", tone="bad"), Cell(one.says), Cell(one.seen)]
        for one in experiment.predicted
    ]
    return Table(("outcome", "predicted", "seen"), rows)


def lost_table(experiment: Experiment) -> Table:
    """Units without a result."""
    rows = [
        [
            Cell(one.unit.arm),
            _number(rate(one.unit.rate), one.unit.rate),
            _number(count(one.unit.seed), one.unit.seed),
            Cell("test" if one.unit.tests else "choice of the rate"),
            Cell(one.reason),
        ]
        for one in experiment.lost
    ]
    return Table(("arm", "rate", "seed", "for", "reason"), rows, frozenset(("rate", "seed")))


def still_table(experiment: Experiment) -> Table:
    """Parameters of memories that stood still."""
    rows = [
        [Cell(arm), Cell(name), Cell(f"{number} of {number_of(units, 'seed')}")]
        for arm, name, number, units in still(experiment)
    ]
    return Table(("arm", "parameter", "stood still in"), rows)


def origin_table(experiment: Experiment) -> Table:
    """What computed it, and on what."""
    worlds = sorted({(one.processes, one.device) for one in experiment.units})
    ran = ", ".join(f"{number_of(processes, 'process', 'processes')} on {device}" for processes, device in worlds)
    facts = {"digest of the recipe": experiment.recipe.digest, "each unit ran in": ran or DASH}
    facts |= {f"version of {name}": version for name, version in experiment.versions.items()}
    facts |= experiment.machine
    return Table(("what", "was"), [[Cell(name), Cell(str(value))] for name, value in facts.items()])


def rates_table(experiment: Experiment) -> Table:
    """Mean scores on the validation examples by which rates were chosen."""
    rates = sorted({float(one) for facts in experiment.arms.values() for one in facts.tuning})
    scale, rows = scale_of(experiment.metric), []
    for arm, facts in experiment.arms.items():
        means = {float(one): sum(scores) / len(scores) for one, scores in facts.tuning.items() if scores}
        chosen = next((one for one in rates if facts.rate is not None and math.isclose(one, facts.rate)), None)
        cells = [_tuned(scale.number(means.get(one)), means.get(one), one == chosen) for one in rates]
        rows.append([Cell(arm), *cells])
    titles = tuple(rate(one) for one in rates)
    return Table(("arm", *titles), rows if rates else [], frozenset(titles))


def _tuned(text: str, mean: float | None, chosen: bool) -> Cell:
    return _number(f"{text} (chosen)" if chosen else text, mean)
