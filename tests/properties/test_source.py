"""Random networks as plain PyTorch: `aimgraph.to_source` compares each with its module, or says what has no source."""

import re
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import event, given, settings

import aimgraph
from aimgraph.reproducible import plain_attention
from tests.nets import FUZZ, randomise
from tests.properties.graphs import build, recipes
from tests.properties.recipes import Recipe
from tests.properties.test_graphs import MEMORIES, SETTINGS, warn_if_known

REFUSED = (
    r"can't be traced, and what can't be has no source|by a parametrization|hooks are not written, and there are some"
)


@settings(SETTINGS, max_examples=12 * FUZZ)
@given(recipe=recipes(), memory=MEMORIES)
def test_source_of_random_networks(recipe: Recipe, memory: dict[str, Any]) -> None:
    base, inputs = build(recipe)
    with plain_attention(), tempfile.TemporaryDirectory() as folder:
        try:
            aim = randomise(aimgraph.transform(base, inputs, **memory), scale=0.2)
        except aimgraph.TraceError as error:
            warn_if_known(error, recipe)
            return
        for name, module in (("base", base), ("aim", aim)):
            try:
                aimgraph.to_source(module, Path(folder) / f"made_{name}", inputs)
            except aimgraph.PlanError as error:
                assert re.search(REFUSED, str(error)), str(error)  # noqa: PT017
                event("refused")
