"""The sizes and colours that pictures are drawn with."""

from dataclasses import dataclass

from aimgraph.planning.colours import DARK, LIGHT
from aimgraph.web.svg import FONT

WIDTH = 380.0
"""Of a picture, in its own units: about the pixels of a phone, so that its text is as large there as anywhere."""

BOLD = 1.2 * FONT
"""The height of regular text that is as wide as bold text of the common height."""


@dataclass(frozen=True)
class Inks:
    """Colours, as CSS.

    Attributes:
        text: Of words, and the line at zero.
        faint: Of ticks and remarks.
        grid: Of lines behind the data.
        paper: Behind everything.
        arms: Of arms, to be repeated.
    """

    text: str
    faint: str
    grid: str
    paper: str
    arms: tuple[str, ...]


_ARMS = tuple(f"var(--arm-{number})" for number in range(len(LIGHT)))

PAGE = Inks("var(--ink)", "var(--faint)", "var(--grid)", "var(--paper)", _ARMS)
"""Those of the page, which has a light and a dark mode."""

STILL = Inks("#1b1f24", "#57606a", "#dde1e6", "#ffffff", LIGHT)
"""Those of a picture that stands alone."""


def colour_rules(dark: bool) -> str:
    """CSS declarations of the arms' colours."""
    return " ".join(f"--arm-{number}: {colour};" for number, colour in enumerate(DARK if dark else LIGHT))
