"""Colours of the arms of an experiment and of the values of a memory, and of maps of numbers.

They are told apart with every kind of colour vision, and at least 3 : 1 against the paper. The first is that of the
base. Shapes and dashes tell arms apart where there are more arms than colours.
"""

LIGHT = ("#1b1f24", "#1769e0", "#e8500a", "#14a074", "#c83fa8", "#0c4868", "#57350c")
"""On white."""

DARK = ("#f0f3f6", "#4d86ff", "#ffa24d", "#2fa86c", "#d873c0", "#a9d3ff", "#7d7a16")
"""On `DARK_PAPER`."""

DARK_PAPER = "#14171c"

HEAT_LIGHT = (
    *("#0b4a8f", "#2f73b8", "#68a0d4", "#a3c8e8", "#d5e6f4", "#f4f5f6"),
    *("#fbe3cf", "#f6bf93", "#e8935a", "#cc632b", "#943c0c"),
)
"""From the most negative number over zero to the largest: blue to orange."""

HEAT_DARK = (
    *("#8cc4ff", "#5c9fe6", "#3b7bbf", "#285a90", "#1f3d5e", "#232830"),
    *("#55351c", "#85501f", "#b86f2b", "#e59347", "#ffc07f"),
)
"""The same on a dark paper, where zero is dark."""
