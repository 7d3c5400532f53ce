"""A report for a terminal."""

import io
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from aimgraph.experiment.report.formats import rate, scale_of, seconds
from aimgraph.experiment.report.gathered import at_edge, length, tested
from aimgraph.experiment.report.tables import comparisons_table
from aimgraph.experiment.report.verdict import cautions, sentence
from aimgraph.experiment.results import Experiment
from aimgraph.web.formats import DASH, MINUS, brief, number_of, printable

WIDTH = 80


def report_text(experiment: Experiment) -> str:
    """What an experiment says, for a terminal: the verdict, cautions, and two tables.

    No line is longer than 80 columns, and all that is not part of somebody's name is ASCII.
    """
    top = [sentence(experiment), *(f"! {text}" for text in cautions(experiment))]
    parts = ["\n".join(_wrapped(text) for text in top), _arms(experiment)]
    if experiment.comparisons:
        parts.append(_comparisons(experiment))
    return printable("\n\n".join(parts)).replace(MINUS, "-").replace(DASH, "-") + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _arms(experiment: Experiment) -> str:
    scale, rows = scale_of(experiment.metric), []
    for arm, facts in experiment.arms.items():
        scores = tested(experiment, arm)
        edge = "*" if at_edge(experiment.recipe, facts) else ""
        rows.append([
            arm, rate(facts.rate) + edge, scale.number(scores.mean), scale.number(scores.sd), str(scores.seeds),
            brief(facts.trained), brief(facts.added), seconds(facts.seconds),
        ])  # fmt: skip
    unit = f", {scale.unit}" if scale.unit else ""
    title = f"Test {scale.name}{unit}, mean and sd over seeds; *: the rate is at the edge of those tried"
    return _drawn(_wrapped(title), ("arm", "rate", "mean", "sd", "seeds", "trained", "added", "s/epoch"), rows)


def _comparisons(experiment: Experiment) -> str:
    table, scale = comparisons_table(experiment, experiment.comparisons), scale_of(experiment.metric)
    wanted = [table.columns.index(name) for name in ("95 % interval", "p", "verdict")]
    rows = [[row[0].text, row[2].text, *(row[place].text for place in wanted)] for row in table.rows]
    unit = f", {scale.gap_unit}" if scale.gap_unit else ""
    pairs = number_of(max(one.pairs for one in experiment.comparisons), "pair")
    trained = f"each arm trained for {length(experiment.recipe)}"
    title = f"Differences of test {scale.name}{unit}, up to {pairs} of seeds, {trained}"
    return _drawn(_wrapped(title), ("comparison", "mean", "95 % interval", "p", "verdict"), rows)


def _drawn(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is folded where the others leave no room."""
    table = Table(box=box.ASCII2, show_edge=False, pad_edge=False)
    for place, name in enumerate(columns):
        left = place == 0 or name == "verdict"
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=place > 0)
    for row in rows:
        table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None, markup=False, emoji=False, highlight=False).print(table)
    return "\n".join([title, *(line.rstrip() for line in out.getvalue().splitlines())])
