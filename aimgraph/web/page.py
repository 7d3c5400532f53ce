"""A report as one file of HTML, and its small form, a fragment for notebooks."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from aimgraph.planning.colours import DARK, HEAT_DARK, HEAT_LIGHT, LIGHT
from aimgraph.version import __version__
from aimgraph.web.subject import Subject
from aimgraph.web.templating import environment, markup
from aimgraph.web.view import small_view, whole_view


def html_page(subjects: Sequence[Subject]) -> str:
    """The page of one model: a file that needs no other, and no network.

    Raises:
        ConfigError: jinja2 can't be imported.
    """
    parts = [whole_view(subject, f"part{number}") for number, subject in enumerate(subjects)]
    shapes = [" x ".join(map(str, shape)) for shape in subjects[0].plan.inputs]
    given = {
        "title": parts[0]["title"] if len(parts) == 1 else f"{len(parts)} transformed parts and their memories",
        "about": f"inputs {', '.join(shapes)}" if shapes else "",
        "parts": parts,
        "style": _style(),
        "made_by": f"made by aimgraph {__version__}",
    }
    return str(_templates().get_template("report.html.j2").render(given))


def html_fragment(subjects: Sequence[Subject]) -> str:
    """The headline and the folded graph, whose styles reach nothing else in the page that it stands in.

    Raises:
        ConfigError: jinja2 can't be imported.
    """
    parts = [small_view(subject, f"part{number}") for number, subject in enumerate(subjects)]
    return str(_templates().get_template("fragment.html.j2").render({"parts": parts, "style": _style()}))


@cache
def _templates() -> Any:
    return environment()


def _style() -> Any:
    """The rules of the graph, all of them below the class ``aimgraph``."""
    rules = {
        "light": _variables("v", LIGHT[1:]),
        "dark": _variables("v", DARK[1:]),
        "heat_light": _variables("h", HEAT_LIGHT),
        "heat_dark": _variables("h", HEAT_DARK),
    }
    return markup(_templates().get_template("graph.css").render(rules))


def _variables(name: str, colours: Sequence[str]) -> str:
    return " ".join(f"--{name}{number}: {colour};" for number, colour in enumerate(colours))
