"""What will be inserted where: the plan, as data. Nothing here touches a graph."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from aimgraph.config import AimConfig
from aimgraph.runtime.read import ReadSpec


@dataclass(frozen=True)
class SiteCall:
    """One call of a site in one graph.

    Attributes:
        graph: ``both``, ``train`` or ``eval``.
        node: Name of the node.
        shape: Shape of the input at the example batch size.
        grid: S.
        batch_axis: Dimension that carries the batch; None for an input without one.
        batch_ratio: r where that dimension is r * B; 0 where the input does not depend on B, -1 where
            it does in another way.
        channel_axis: Dimension that carries the channels.
        folded: Whether the batch is folded into the channels, one group of the convolution per sample;
            the axes are then those of the memory's own term.
        leaf: Path of the module that is kept as one call, whose node this is; empty if the node is the site's own.
        name: What the call is named after: the site's path, unless calls of one name are several sites.
        turn: Which call of that name it is, of those outside of `leaf` modules on inputs of as many dimensions, from 0;
            inside one, which call of that module it belongs to.
        output: Shape of the output at the example batch size.
        places: Positions of a sample at which the kernel is applied.
    """

    graph: str
    node: str
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    batch_axis: int | None
    batch_ratio: int
    channel_axis: int
    folded: bool = False
    leaf: str = ""
    name: str = ""
    turn: int = 0
    output: tuple[int, ...] = ()
    places: int = 0


@dataclass(frozen=True)
class Site:
    """A layer that can read, or a call of a function (``F.linear``) that can.

    Attributes:
        path: Path of the layer; for a function, of the module whose forward calls it, ``.<function>_<i>``.
        kind: Class name, or the function's.
        channels: (in, out) channels or features.
        groups: g.
        taps: Parameters of Wm per memory channel: O times the kernel's size.
        calls: Its calls, in graph order.
        raw: Whether the layer transforms its weight before use; the read weight is used as it is.
        split_only: Why its weight can't be widened; empty if it can.
        function: Whether it is the call of a function.
    """

    path: str
    kind: str
    channels: tuple[int, int]
    groups: int
    taps: int
    calls: tuple[SiteCall, ...]
    raw: bool = False
    split_only: str = ""
    function: bool = False

    @property
    def leaf(self) -> str:
        """Path of a module around a call of it that is kept as one call; empty if there is none."""
        return next((call.leaf for call in self.calls if call.leaf), "")


@dataclass(frozen=True)
class Skipped:
    """A layer, call or update that is left as it is, and why."""

    path: str
    kind: str
    reason: str


@dataclass(frozen=True)
class UpdateSpot:
    """Where features are written into a memory.

    Attributes:
        memory: Name of the memory.
        where: Module path or a description of the tensor X.
        nodes: Graph -> name of the node that gives X.
        features: C, channels of X.
        grid: Grid of X.
        batch_axis: Dimension of X that carries the batch.
        channel_axis: Dimension of X that carries the channels.
    """

    memory: str
    where: str
    nodes: dict[str, str]
    features: int
    grid: tuple[int, ...]
    batch_axis: int
    channel_axis: int


@dataclass(frozen=True)
class ReadCall:
    """Which value of the memory one call of a site reads.

    Attributes:
        graph: ``both``, ``train`` or ``eval``.
        node: Name of the call's node.
        spec: The layout of the view in this call.
        value: 0 for the source, i for the i-th update.
        mean: Whether it reads the batch mean of a per-sample value.
        note: Why it reads something else than the latest per-sample value; empty otherwise.
        folded: Whether the batch is folded into the channels of the call.
        leaf: Path of the module that is kept as one call, whose node this is; empty if the node is the site's own.
        name: What the call is named after: the site's path, unless calls of one name are several sites.
        turn: Which call of that name it is, of those outside of `leaf` modules on inputs of as many dimensions, from 0;
            inside one, which call of that module it belongs to.
        batch_ratio: r where its input has r * B rows; 0 where that does not depend on B, -1 for anything else.
    """

    graph: str
    node: str
    spec: ReadSpec
    value: int
    mean: bool = False
    note: str = ""
    folded: bool = False
    leaf: str = ""
    name: str = ""
    turn: int = 0
    batch_ratio: int = 1


@dataclass(frozen=True)
class FormCost:
    """What a read adds to one forward in one form.

    Attributes:
        form: ``split``, ``concat`` or ``folded``.
        products: Floating-point operations of matrix products and convolutions.
        sums: Those of adding terms to outputs.
        saved: Bytes of float32 tensors that are kept for the backward pass.
    """

    form: str
    products: int
    sums: int
    saved: int

    @property
    def flops(self) -> int:
        """All floating-point operations."""
        return self.products + self.sums


@dataclass(frozen=True)
class Read:
    """One read weight: a site, a memory and the calls that it serves.

    Attributes:
        site: Path of the layer.
        name: Where the read layer lives below ``aim.<memory>.reads``.
        kind: Class name of the layer.
        channels: k.
        grid: S of the first call.
        parameters: Parameters of Wm.
        lowering: ``split`` or ``concat``.
        calls: The calls that use this read weight.
        raw: Whether the layer transforms its own weight; Wm is used as it is.
        note: Why the lowering is not the one asked for; empty otherwise.
        function: Whether the site is the call of a function.
        costs: What it adds to a forward in each form; see `aimgraph.costs`.
    """

    site: str
    name: str
    kind: str
    channels: int
    grid: tuple[int, ...]
    parameters: int
    lowering: str
    calls: tuple[ReadCall, ...]
    raw: bool = False
    note: str = ""
    function: bool = False
    costs: tuple[FormCost, ...] = ()

    @property
    def leaf(self) -> str:
        """Path of a module around a call of it that is kept as one call; empty if there is none."""
        return next((call.leaf for call in self.calls if call.leaf), "")


@dataclass(frozen=True)
class PlannedUpdate:
    """An update that is kept; its number is its place in ``MemoryPlan.updates``, from 1."""

    spot: UpdateSpot
    parameters: int


@dataclass(frozen=True)
class MemoryPlan:
    """One memory: its shape, what it costs and what it serves.

    Attributes:
        config: What was asked for.
        shape: Resolved shape.
        size: N.
        source_parameters: Parameters of the source.
        reads: Read weights, in graph order.
        updates: Kept updates, in execution order.
        dropped: Updates that nothing would ever read.
    """

    config: AimConfig
    shape: tuple[int, ...]
    size: int
    source_parameters: int
    reads: tuple[Read, ...]
    updates: tuple[PlannedUpdate, ...]
    dropped: tuple[Skipped, ...]

    @property
    def name(self) -> str:
        """Name of the memory."""
        return self.config.name

    @property
    def parameters(self) -> int:
        """Parameters that this memory adds: source, read weights and updates."""
        return (
            self.source_parameters
            + sum(read.parameters for read in self.reads)
            + sum(update.parameters for update in self.updates)
        )


@dataclass(frozen=True)
class Plan:
    """What `aimgraph.transform` does to a base. Prints as a table; `to_dict` for machines.

    Attributes:
        model: Class name of the base.
        inputs: Shapes of the example inputs.
        base_parameters: Parameters of the base.
        layers: Convolutions and linear layers present in the base.
        called: Names of the layers and functions that the base's own forward calls.
        sites: Layers that can read.
        skipped: Layers and calls left alone, with the reason.
        spots: Where updates could be written, before the dead ones are dropped.
        memories: One plan per memory.
        notes: Anything else a user should know.
    """

    model: str
    inputs: tuple[tuple[int, ...], ...]
    base_parameters: int
    layers: int
    called: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    spots: tuple[UpdateSpot, ...] = ()
    memories: tuple[MemoryPlan, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def added_parameters(self) -> int:
        """Parameters that all memories add."""
        return sum(memory.parameters for memory in self.memories)

    @property
    def sites_read(self) -> int:
        """How many distinct layers read some memory."""
        return len({read.site for memory in self.memories for read in memory.reads})

    @property
    def fallback(self) -> int:
        """How many sites are inside a module that can't be traced."""
        return sum(bool(site.leaf) for site in self.sites)

    @property
    def covered(self) -> int:
        """How many of the layers and functions that the base calls read at every call."""
        left = {item.path for item in self.skipped}
        return sum(name not in left for name in self.called)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready data, with totals."""
        data = asdict(replace(self, memories=()))
        data["memories"] = [_memory_dict(memory) for memory in self.memories]
        data["totals"] = {
            "base_parameters": self.base_parameters,
            "added_parameters": self.added_parameters,
            "added_ratio": self.added_parameters / max(1, self.base_parameters),
            "layers_present": self.layers,
            "layers_called": len(self.called),
            "layers_covered": self.covered,
            "sites_read": self.sites_read,
        }
        return data

    def __str__(self) -> str:
        """The plan as a table, 120 columns wide."""
        from aimgraph.report import plan_text

        return plan_text(self)


def _memory_dict(memory: MemoryPlan) -> dict[str, Any]:
    config = memory.config
    data = asdict(replace(memory, config=AimConfig()))
    sites = config.sites if not callable(config.sites) else repr(config.sites)
    data["config"] = config.model_dump(mode="json", exclude={"sites"}) | {"sites": sites}
    data["parameters"] = memory.parameters
    return data
