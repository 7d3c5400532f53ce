"""Does a widened model give the outputs of the model?"""

from functools import partial

import torch
from torch import nn

from aimgraph.api.widen import resolved
from aimgraph.copies import copy_module
from aimgraph.inputs.arguments import Arguments
from aimgraph.inputs.samples import samples_for
from aimgraph.reproducible import seeded
from aimgraph.torch_private import NormBase
from aimgraph.widen.agree import agreement, draws_in_training
from aimgraph.widen.build import built
from aimgraph.widen.plan import WidenPlan
from aimgraph.widen.widening import Asked, widened

WIDER = 1.4
"""How many times the parameters a model has to reach that is given 1.5 times as many to have."""

BUDGET = 1.5


def widen_problem(model: nn.Module, inputs: Arguments | None) -> tuple[str, WidenPlan, str]:
    """Widen a model, with copies that are read unequally, and compare it in both modes.

    Args:
        model: It is not changed.
        inputs: Example inputs; inferred if there are none.

    Returns:
        The first thing that is wrong, empty if nothing is; the plan; and what could not be compared, in words.
    """
    model, given = resolved(calibrated(model, inputs), inputs)
    found = widened(model, given, Asked(parameters=BUDGET, noise=0.1))
    build = partial(built, grown=found.grown, noise=0.1)
    sample = samples_for(model, given, torch.device("cpu")).at(2, 1)
    agreed = agreement(model, build, sample)
    if not agreed.close:
        return agreed.told(), found.plan, ""
    if draws_in_training(model, sample):
        return "", found.plan, ". not compared: train mode, which draws random numbers"
    agreed = agreement(model, build, sample, train=True)
    return ("" if agreed.close else f"train mode: {agreed.told()}"), found.plan, ""


def calibrated(model: nn.Module, inputs: Arguments | None) -> nn.Module:
    """A copy of a model whose norms have seen a batch: at the start they give much the same for every input."""
    copy = copy_module(model)
    norms = [part for part in copy.modules() if isinstance(part, NormBase)]
    if inputs is None or not norms:
        return copy
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    args, kwargs = samples_for(copy, inputs, torch.device("cpu")).at(4, 0)
    with seeded(), torch.no_grad():
        copy.train()(*args, **kwargs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return copy.train(model.training)
