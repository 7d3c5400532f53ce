"""A picture of an experiment that stands alone, as for a README."""

from xml.etree.ElementTree import Element

from aimgraph.experiment.report.pictures.costs import over_parameters
from aimgraph.experiment.report.pictures.forest import forest
from aimgraph.experiment.report.pictures.svg import STILL, WIDTH
from aimgraph.experiment.report.verdict import sentence
from aimgraph.experiment.results import Experiment
from aimgraph.web.svg import FONT, as_text, drawing, element, words

_GAP, _HEAD, _EDGE = 30.0, 34.0, 14.0


def picture(experiment: Experiment) -> str:
    """An SVG: paired differences on the test examples, and test scores over trained parameters.

    Its colours are its own, on white. What an experiment does not have is left out.
    """
    pairs = forest(experiment, experiment.comparisons, STILL, "still-forest", "test")
    panels = (("Paired differences, 95 % intervals", pairs), ("Score and size", over_parameters(experiment, STILL)))
    there = [(title, panel) for title, panel in panels if panel is not None]
    width = 2 * _EDGE + max(1, len(there)) * WIDTH + max(0, len(there) - 1) * _GAP
    height = _HEAD + max((float(panel.attrib["height"]) for _, panel in there), default=0.0) + _EDGE
    parts: list[Element] = [element("rect", width=width, height=height, fill=STILL.paper)]
    for place, (title, panel) in enumerate(there):
        left = _EDGE + place * (WIDTH + _GAP)
        parts.append(words(title, left + 2, 22, STILL.text, FONT + 1, font_weight="600"))
        parts.append(element("g", *panel, transform=f"translate({left:g} {_HEAD:g})"))
    return as_text(drawing("still", experiment.recipe.name, sentence(experiment), (width, height), *parts)) + "\n"
