"""A report as a page of HTML, and as Markdown."""

import re
from functools import cache
from typing import Any
from xml.etree.ElementTree import Element

from jinja2 import Environment
from markupsafe import Markup

from aimgraph.experiment.report.formats import scale_of
from aimgraph.experiment.report.gathered import length
from aimgraph.experiment.report.pictures.costs import over_kept, over_parameters
from aimgraph.experiment.report.pictures.curves import curves_by_epoch, curves_by_second, curves_by_strength
from aimgraph.experiment.report.pictures.forest import forest
from aimgraph.experiment.report.pictures.probes import probe_bars
from aimgraph.experiment.report.pictures.svg import PAGE, colour_rules
from aimgraph.experiment.report.recipe_text import recipe_text
from aimgraph.experiment.report.tables import (
    arms_table,
    comparisons_table,
    lost_table,
    origin_table,
    predictions_table,
    rates_table,
    still_table,
)
from aimgraph.experiment.report.verdict import cautions, sentence
from aimgraph.experiment.results import Experiment
from aimgraph.web.formats import printable
from aimgraph.web.svg import as_text
from aimgraph.web.templating import environment


def html_page(experiment: Experiment) -> str:
    """A page that is one file, and that reads without a network and without a script."""
    pictures = {name: _markup(found) for name, found in _pictures(experiment).items()}
    given = _given(experiment) | {"pictures": pictures, "light": colour_rules(False), "dark": colour_rules(True)}
    return _templates().get_template("report.html.j2").render(given)


def markdown_page(experiment: Experiment) -> str:
    """The same without pictures, as Markdown with tables."""
    text = _templates().get_template("report.md.j2").render(_given(experiment))
    body, fence, recipe = text.partition("```")
    return re.sub("\n{3,}", "\n\n", body) + fence + recipe


def _given(experiment: Experiment) -> dict[str, Any]:
    """What templates show."""
    text = printable(recipe_text(experiment.recipe))
    return {
        "name": experiment.recipe.name,
        "about": experiment.recipe.about,
        "scale": scale_of(experiment.metric),
        "length": length(experiment.recipe),
        "sentence": sentence(experiment),
        "cautions": cautions(experiment),
        "arms": arms_table(experiment),
        "compared": comparisons_table(experiment, experiment.comparisons),
        "timed": comparisons_table(experiment, experiment.at_equal_seconds),
        "predictions": predictions_table(experiment),
        "lost": lost_table(experiment),
        "still": still_table(experiment),
        "rates": rates_table(experiment),
        "origin": origin_table(experiment),
        "recipe": text,
        "fence": "`" * (1 + max([2, *(len(run) for run in re.findall("`+", text))])),
    }


def _pictures(experiment: Experiment) -> dict[str, list[Element]]:
    """Name -> pictures that there are."""
    found: dict[str, list[Element | None]] = {
        "curves": [curves_by_epoch(experiment, PAGE), curves_by_second(experiment, PAGE)],
        "forest": [forest(experiment, experiment.comparisons, PAGE, "forest", "test")],
        "forest_timed": [forest(experiment, experiment.at_equal_seconds, PAGE, "forest-timed", "validation")],
        "costs": [over_parameters(experiment, PAGE), over_kept(experiment, PAGE)],
        "strength": [curves_by_strength(experiment, PAGE)],
        "probes": [*probe_bars(experiment, PAGE)],
    }
    return {name: [one for one in pictures if one is not None] for name, pictures in found.items()}


def _markup(pictures: list[Element]) -> list[Markup]:
    return [Markup(as_text(one)) for one in pictures]  # ElementTree has escaped what is in it


@cache
def _templates() -> Environment:
    found: Environment = environment("aimgraph.experiment.report")
    found.filters["md"] = _escaped_markdown
    return found


def _escaped_markdown(text: str) -> str:
    """One line in which nothing is a sign of Markdown or of HTML."""
    line = " ".join(printable(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_{}\[\]#|~$])", r"\\\1", line)
    line = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)  # a list with numbers
    return re.sub(r"^([-+=])(?![\d.])", r"\\\1", line)  # a list, or a line below a heading
