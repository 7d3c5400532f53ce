"""Rates, ends and best epochs, from nothing but how far training is and the scores after each epoch.

So a unit that goes on after a stop does what one without a stop does.
"""

import math
from collections.abc import Sequence

from aimgraph.experiment.recipe import Recipe

WAIT, CUT, BETTER = 3, 0.1, 1e-4
"""Of the schedule ``plateau``: epochs without a better score, the factor on the rate then, and what is better."""

BETTER_TO_GO_ON = 1e-3
"""What counts as better for `Recipe.patience`."""


def rate_at(recipe: Recipe, rate: float, done: float, scores: Sequence[float]) -> float:
    """The learning rate.

    Args:
        recipe: The experiment.
        rate: At the beginning.
        done: Share of the training that is done, 0 to 1.
        scores: On the validation examples, after each epoch so far.
    """
    if recipe.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * done)) / 2
    if recipe.schedule == "plateau":
        return rate * CUT ** plateaus(scores)
    return rate


def plateaus(scores: Sequence[float]) -> int:
    """How often the scores have not become better for `WAIT` epochs."""
    best, since, found = -math.inf, 0, 0
    for score in scores:
        if score > best + BETTER:
            best, since = score, 0
            continue
        since += 1
        if since == WAIT:
            found, since = found + 1, 0
    return found


def is_over(recipe: Recipe, scores: Sequence[float]) -> bool:
    """Whether the recipe's patience has ended."""
    if recipe.patience is None:
        return False
    best, since = -math.inf, 0
    for score in scores:
        best, since = (score, 0) if score > best + BETTER_TO_GO_ON else (best, since + 1)
    return since >= recipe.patience


def best_epoch(scores: Sequence[float]) -> int:
    """The first epoch, from 0, with the best score; scores that are no numbers are the worst."""
    ranked = [-math.inf if math.isnan(score) else score for score in scores]
    return ranked.index(max(ranked))
