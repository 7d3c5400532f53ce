"""What each form of a read costs, from the plan alone: before anything is trained, or even built.

A site with k memory channels, whose kernel holds T weights per memory channel and is applied at P places of a sample,
in a batch of B samples, with Q numbers in a sample's output:

    split    2 k T P       + B Q     one product for all samples, and a sum; B times the product if samples differ
    concat   2 k T P B               the product is part of the layer's own, for every sample
    folded                   B Q     the product was taken before; nothing at all where it is part of a bias

For the backward pass split keeps the view, once for all sites of one grid, and concat keeps [x ; m] of every sample. A
convolution with as many taps as places keeps its windows instead, a number for every tap at every place.
"""

import math
from dataclasses import replace
from fractions import Fraction

from aimgraph.planning.reads import FORMS, FormCost, MemoryPlan, Read, ReadCall
from aimgraph.planning.sites import Site, SiteCall
from aimgraph.runtime.layer_kinds.conv import KEEPS_WINDOWS

NUMBER_BYTES = 4


def with_costs(memory: MemoryPlan, sites: tuple[Site, ...], growth: Fraction) -> MemoryPlan:
    """The plan of a memory, each read with its costs.

    Args:
        memory: The plan.
        sites: All that can read.
        growth: Samples of the example inputs over those that the sites' shapes hold for.
    """
    known = {site.path: site for site in sites}
    shown: set[tuple[object, ...]] = set()
    pooled = memory.config.pool is not None
    reads = tuple(replace(read, costs=_costs(read, known[read.site], growth, shown, pooled)) for read in memory.reads)
    return replace(memory, reads=reads)


def _costs(
    read: Read, site: Site, growth: Fraction, shown: set[tuple[object, ...]], pooled: bool
) -> tuple[FormCost, ...]:
    """Summed over the calls of one forward in train mode."""
    totals = {form: [0, 0, 0] for form in FORMS}
    known = {(call.graph, call.node, call.opaque, call.turn): call for call in site.calls}
    for call in read.calls:
        if call.graph == "eval":
            continue
        made = known[call.graph, call.node, call.opaque, call.turn]
        rows = math.ceil(_rows(made) * growth) if made.batch_ratio else _rows(made)
        positions, outputs = made.places, math.prod(made.output) // max(1, _rows(made))
        differ = rows if call.value and not (call.mean or pooled) else 1
        product, total = 2 * read.channels * site.taps * positions, rows * outputs
        view, taps = 0, site.taps * positions // max(1, outputs)
        if site.kind == KEEPS_WINDOWS and len(made.grid) == 2 and 1 < positions <= taps and differ == 1:
            view = NUMBER_BYTES * read.channels * taps * positions
        elif (key := (call.value, call.mean, call.spec, made.grid)) not in shown:
            shown.add(key)
            view = 0 if _is_source(call) else NUMBER_BYTES * differ * read.channels * math.prod(made.grid)
        joined = NUMBER_BYTES * rows * (site.channels[0] + site.groups * read.channels) * math.prod(made.grid)
        constant = not made.grid  # as it is for a linear layer on [B, F]
        found = {
            "split": (differ * product, total, view),
            "concat": (rows * product, 0, joined),
            "folded": (differ * product, total, 0) if call.value else (0, 0 if constant else total, 0),
        }
        for form, numbers in found.items():
            totals[form] = [before + more for before, more in zip(totals[form], numbers, strict=True)]
    return tuple(FormCost(form, *numbers) for form, numbers in totals.items())


def _is_source(call: ReadCall) -> bool:
    """Whether the view is the source itself in another shape: neither padded nor turned."""
    spec = call.spec
    last = len(spec.grid) + (spec.batch_axis is not None)
    whole = spec.size == spec.channels * math.prod(spec.grid)
    return call.value == 0 and whole and spec.style == "reshape" and spec.channel_axis == last


def _rows(call: SiteCall) -> int:
    """Samples of a call."""
    return 1 if call.batch_axis is None or call.grouped_batch else call.shape[call.batch_axis]
