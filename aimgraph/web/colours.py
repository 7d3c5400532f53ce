"""Colours of arms: told apart with every kind of colour vision, and at least 3 : 1 against the paper.

The first is that of the base. Shapes and dashes tell arms apart where there are more arms than colours.
"""

LIGHT = ("#1b1f24", "#1769e0", "#e8500a", "#14a074", "#c83fa8", "#0c4868", "#57350c")
"""On white."""

DARK = ("#f0f3f6", "#4d86ff", "#ffa24d", "#2fa86c", "#d873c0", "#a9d3ff", "#7d7a16")
"""On `DARK_PAPER`."""

DARK_PAPER = "#14171c"
