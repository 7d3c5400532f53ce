"""Decide the shape of each memory, what each site reads, and what it all costs.

Before -> after: the graphs are untouched; the plan gains its memories.

k = max(1, ceil(N / P)) channels at a site with P = prod(S) positions; Wm has k * taps parameters.
With ``shape="auto"`` the memory takes the smallest grid with P > 1 among its sites and the most
channels whose added parameters stay within budget * (base parameters): the cost never falls as
channels rise, so bisection finds the optimum.

Declines: updates that no site reads afterwards and no state keeps.
"""

import glob
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import nn

from aimgraph.compiler.program import BasePass, PassResult, Program, Stage
from aimgraph.config import AimConfig, as_patterns
from aimgraph.errors import ConfigError, PlanError
from aimgraph.planning.budget import over_budget
from aimgraph.planning.costs import with_costs
from aimgraph.planning.parts import Parts
from aimgraph.planning.patterns import select_paths
from aimgraph.planning.plan import Plan
from aimgraph.planning.reads import MemoryPlan, PlannedUpdate, Read, ReadCall
from aimgraph.planning.sites import Site, SiteCall, Skipped, UpdateSpot
from aimgraph.planning.start import scale_of
from aimgraph.reproducible import kept_randomness
from aimgraph.runtime.reads.view import ViewSpec
from aimgraph.runtime.sources.given import GIVEN


@dataclass(frozen=True)
class PlanMemory(BasePass):
    """ANALYSED -> PLANNED."""

    requires: Stage = Stage.ANALYSED
    ensures: Stage = Stage.PLANNED

    def run(self, program: Program) -> PassResult:
        """Fill in ``plan.memories`` and notes.

        Raises:
            PlanError: There is no layer that can read, or a pattern matches none.
            ConfigError: Two memories ask for different lowerings at one site; or a source, read or block is not
                registered, or is not what its role asks for.
        """
        if not program.plan.sites:
            raise PlanError(_nothing_to_read(program.plan))
        parts = [Parts(config) for config in program.configs]
        order = {name: {node.name: i for i, node in enumerate(graph.nodes)} for name, graph in program.graphs.items()}
        samples = program.plan.inputs[0][0] if program.plan.inputs and program.plan.inputs[0] else 1
        growth = Fraction(samples, program.signature.batch)
        planned = (_plan_one(one, program, order) for one in parts)
        with kept_randomness(), torch.no_grad():
            memories = tuple(with_costs(memory, program.plan.sites, growth) for memory in planned)
        _check_lowerings(memories)
        notes = tuple(filter(None, (over_budget(memory, program.plan.base_parameters) for memory in memories)))
        skipped = program.plan.skipped + _not_chosen(program.plan.sites, memories)
        plan = replace(program.plan, memories=memories, skipped=skipped, notes=program.plan.notes + notes)
        dropped = tuple(item for memory in memories for item in memory.dropped)
        return PassResult(replace(program, plan=plan), False, dropped)


def _plan_one(parts: Parts, program: Program, order: dict[str, dict[str, int]]) -> MemoryPlan:
    config = parts.config
    sites = _select(config, program)
    if callable(config.sites):  # what it chose can be written down and pickled; it can't
        config = config.model_copy(update={"sites": tuple(glob.escape(site.path) for site in sites)})
    if isinstance(config.source, torch.Tensor):  # the memory holds its values
        config = config.model_copy(update={"source": GIVEN})
    spots = tuple(spot for spot in program.plan.spots if spot.memory == config.name)
    kept, dropped = _live_spots(config, sites, spots, order)
    limit = config.budget * program.plan.base_parameters
    shape = _auto_shape(parts, sites, kept, limit) if config.shape == "auto" else config.shape
    values = _ValueOf(config, kept, order)
    reads: list[Read] = []
    for site in sites:
        reads += _site_reads(parts, site, shape, values, len(reads))
    return MemoryPlan(
        config=config,
        shape=shape,
        size=math.prod(shape),
        scale=scale_of(config, reads),
        source_parameters=parts.source_parameters(shape),
        reads=tuple(reads),
        updates=tuple(PlannedUpdate(spot, parts.update_parameters(shape, spot)) for spot in kept),
        dropped=dropped,
    )


def _auto_shape(parts: Parts, sites: list[Site], spots: tuple[UpdateSpot, ...], limit: float) -> tuple[int, ...]:
    """The shape with the most channels whose added parameters stay within the limit."""
    first_calls = [(calls[0], site.taps) for site in sites for calls in _by_rank(site).values()]

    def added(shape: tuple[int, ...]) -> int:
        views = ((parts.view(shape, call.grid), taps) for call, taps in first_calls)
        reads = sum(view.channels * taps + own for (view, own), taps in views)
        return parts.source_parameters(shape) + reads + sum(parts.update_parameters(shape, spot) for spot in spots)

    return _solve(_auto_grid(sites), limit, added)


def _solve(outer: tuple[int, ...], limit: float, added: Callable[[tuple[int, ...]], int]) -> tuple[int, ...]:
    """The shape on a grid with the most channels whose added parameters stay within the limit; one at least."""
    high = 2
    while added((*outer, high)) <= limit:
        high *= 2
    too_many = bisect_right(range(high), limit, lo=high // 2 + 1, key=lambda channels: added((*outer, channels)))
    return (*outer, too_many - 1)


def _auto_grid(sites: list[Site]) -> tuple[int, ...]:
    """(rows, cols) of the smallest grid with more than one position; () if there is none."""
    grids = [call.grid for site in sites for call in site.calls if math.prod(call.grid) > 1]
    if not grids:
        return ()
    grid = min(grids, key=math.prod)
    return (grid[0], 1) if len(grid) == 1 else (math.prod(grid[:-1]), grid[-1])


def _not_chosen(sites: tuple[Site, ...], memories: tuple[MemoryPlan, ...]) -> tuple[Skipped, ...]:
    """Layers that could read, but that no memory was asked to serve."""
    read = {read.site for memory in memories for read in memory.reads}
    return tuple(Skipped(site.path, site.kind, "not chosen") for site in sites if site.path not in read)


def _select(config: AimConfig, program: Program) -> list[Site]:
    sites = {site.path: site for site in program.plan.sites}
    unusable = {item.path: item.reason for item in program.plan.skipped}
    if callable(config.sites):
        predicate = config.sites
        chosen = [site.path for site in sites.values() if predicate(site.path, _module(program.root, site))]
        if not chosen:
            raise PlanError(f"memory {config.name!r}: the callable given as sites accepts none of {len(sites)} layers")
    else:
        what = f"memory {config.name!r}: sites"
        chosen = select_paths(as_patterns(config.sites), sites, what, unusable)
    excluded = set(select_paths(as_patterns(config.exclude), sites, f"memory {config.name!r}: exclude", unusable))
    kept = [sites[path] for path in chosen if path not in excluded]
    if not kept:
        raise PlanError(f"memory {config.name!r}: exclude leaves no layer to read; {len(excluded)} are excluded")
    return kept


def _module(root: nn.Module, site: Site) -> nn.Module:
    """The layer, or the module whose forward calls the function."""
    return root.get_submodule(site.path.rpartition(".")[0] if site.function else site.path)


def _live_spots(
    config: AimConfig, sites: list[Site], spots: tuple[UpdateSpot, ...], order: dict[str, dict[str, int]]
) -> tuple[tuple[UpdateSpot, ...], tuple[Skipped, ...]]:
    """Updates that some site reads afterwards, or a later live update, or the carried state."""
    live = len(spots) if config.carry == "state" else 0
    calls = [call for site in sites for call in site.calls]
    if config.pool is None:  # what does not depend on the batch reads the initial value
        calls = [call for call in calls if call.batch_ratio != 0]
    for number, spot in enumerate(spots, start=1):
        places = {graph: order[graph][node] for graph, node in spot.nodes.items()}
        if any(call.graph in places and order[call.graph][call.node] > places[call.graph] for call in calls):
            live = max(live, number)
    kind, why = f"update of {config.name}", "no site reads it afterwards and no state keeps it"
    return spots[:live], tuple(Skipped(spot.where, kind, why) for spot in spots[live:])


class _ValueOf:
    """Which value of the memory a call reads: the latest update before it in execution order."""

    def __init__(self, config: AimConfig, spots: tuple[UpdateSpot, ...], order: dict[str, dict[str, int]]) -> None:
        self.per_sample, self.spots, self.order = config.pool is None, spots, order

    def read(self, call: SiteCall, view: ViewSpec) -> ReadCall:
        order, mean, note = self.order[call.graph], False, ""
        value = sum(order[spot.nodes[call.graph]] < order[call.node] for spot in self.spots)
        if value and self.per_sample and call.batch_ratio == 0:
            value, note = 0, "its input does not depend on the batch: reads the initial value"
        elif value and self.per_sample and call.batch_ratio != 1:
            size = f"{call.batch_ratio} x the model's" if call.batch_ratio > 0 else "not the model's"
            mean, note = True, f"its batch is {size}: reads the batch mean"
        spec = replace(view, batch_axis=call.batch_axis, channel_axis=call.channel_axis)
        where = call.grouped_batch, call.opaque, call.name, call.turn, call.batch_ratio
        return ReadCall(call.graph, call.node, spec, value, mean, note, *where)


def _site_reads(parts: Parts, site: Site, shape: tuple[int, ...], values: _ValueOf, before: int) -> Iterator[Read]:
    """One read weight, and one more for each other rank that the layer is called at; there are `before` others."""
    by_rank, concat = _by_rank(site), parts.config.lowering == "concat"
    note = site.split_only
    if len(by_rank) > 1:
        note = note or "called at several ranks, each with a read weight of its own: split form only"
    for number, calls in enumerate(by_rank.values()):
        view, _ = parts.view(shape, calls[0].grid)
        yield Read(
            site=site.path,
            name=site.path if number == 0 else f"{site.path}.call_{number}",
            kind=site.kind,
            channels=view.channels,
            grid=calls[0].grid,
            parameters=view.channels * site.taps,
            inputs=view.channels * site.taps // site.channels[1],
            lowering="concat" if concat and not note else "split",
            calls=tuple(values.read(call, view) for call in calls),
            raw=site.raw,
            function=site.function,
            note=note if concat else "",
            view=parts.own_view(shape, calls[0].grid, f"views.{before + number}"),
            left=site.left,
            gradient=site.gradient,
        )


def _by_rank(site: Site) -> dict[int, list[SiteCall]]:
    """The calls by the dimensions of their grid."""
    by_rank: dict[int, list[SiteCall]] = {}
    for call in site.calls:
        by_rank.setdefault(len(call.grid), []).append(call)
    return by_rank


def _check_lowerings(memories: tuple[MemoryPlan, ...]) -> None:
    seen: dict[str, MemoryPlan] = {}
    for memory in memories:
        for read in memory.reads:
            other = seen.setdefault(read.site, memory)
            if other.config.lowering != memory.config.lowering:
                raise ConfigError(
                    f"{read.site}: memory {other.name!r} asks for lowering={other.config.lowering!r} and memory "
                    f"{memory.name!r} for {memory.config.lowering!r}; a layer has one form: give both the same"
                )


def _nothing_to_read(plan: Plan) -> str:
    if not plan.skipped:
        return f"{plan.model} has no convolution or linear layer: there is nothing that could read a memory"
    listed = "\n".join(f"  {item.path} ({item.kind}): {item.reason}" for item in plan.skipped[:8])
    return f"{plan.model} has {plan.layers} convolutions and linear layers, but none can read a memory:\n{listed}"
