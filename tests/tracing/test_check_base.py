"""Models that are refused before they are traced."""

import pytest
from torch import nn

import aimgraph
from tests.tracing.bases import X


def test_names_that_the_emitted_module_needs_are_refused() -> None:
    for name in ("recompile", "_graph", "_record", "shape_env", "_deepcopy_hooks"):
        base = nn.Sequential(nn.Linear(4, 4))
        setattr(base, name, 1)
        with pytest.raises(aimgraph.PlanError, match=rf"members named \['{name}'\]"):
            aimgraph.transform(base, X)


def test_models_that_can_not_be_copied() -> None:
    import threading

    base = nn.Sequential(nn.Linear(4, 4))
    base.lock = threading.Lock()
    with pytest.raises(aimgraph.PlanError, match=r"Sequential can't be copied by copy\.deepcopy: cannot pickle"):
        aimgraph.transform(base, X)


def test_a_single_layer_needs_a_path() -> None:
    with pytest.raises(aimgraph.PlanError, match=r"the model is a single Linear: wrap it, torch\.nn\.Sequential"):
        aimgraph.transform(nn.Linear(4, 4), X)


def test_a_forward_replaced_on_the_instance_is_refused() -> None:
    base = nn.Sequential(nn.Linear(4, 4))
    base.forward = lambda x: x * 2
    with pytest.raises(aimgraph.PlanError, match=r"forward of this Sequential was replaced on the instance"):
        aimgraph.transform(base, X)
