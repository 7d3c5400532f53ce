"""Reads and updates of a memory as data, and what they cost."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from aimgraph.config import AimConfig
from aimgraph.planning.sites import Skipped, UpdateSpot, published
from aimgraph.runtime.reads.view import ViewSpec

FORMS = ("split", "concat", "folded")


@dataclass(frozen=True)
class PlannedUpdate:
    """An update that is kept; its number is its place in ``MemoryPlan.updates``, from 1."""

    spot: UpdateSpot
    parameters: int


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
class ReadCall:
    """Which value of the memory one call of a site reads.

    Attributes:
        graph: ``both``, ``train`` or ``eval``.
        node: Name of the call's node.
        spec: The layout of the view in this call.
        value: 0 for the source, i for the i-th update.
        mean: Whether it reads the batch mean of a per-sample value.
        note: Why it reads something else than the latest per-sample value; empty otherwise.
        grouped_batch: Whether the batch is folded into the channels of the call.
        opaque: Path of the module that is kept as one call, whose node this is; empty if the node is the site's own.
        name: What the call is named after: the site's path, unless calls of one name are several sites.
        turn: Which call of that name it is, of those outside of opaque modules on inputs of as many dimensions, from 0;
            inside one, which call of that module it belongs to.
        batch_ratio: r where its input has r * B rows; 0 where that does not depend on B, -1 for anything else.
    """

    graph: str
    node: str
    spec: ViewSpec
    value: int
    mean: bool = False
    note: str = ""
    grouped_batch: bool = False
    opaque: str = ""
    name: str = ""
    turn: int = 0
    batch_ratio: int = 1


@dataclass(frozen=True)
class OwnView:
    """The module that shows a memory to a site, where the read is one.

    Attributes:
        path: Where it stands below ``aim.<memory>``.
        parameters: Its parameters.
        rows: Whether it shows [B, N] row by row, as it shows each row alone.
    """

    path: str
    parameters: int
    rows: bool


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
        inputs: Numbers of the memory that one of the layer's outputs sees at most: k times the size of the kernel.
        lowering: ``split`` or ``concat``.
        calls: The calls that use this read weight.
        raw: Whether the layer transforms its own weight; Wm is used as it is.
        note: Why the lowering is not the one asked for; empty otherwise.
        function: Whether the site is the call of a function.
        costs: What it adds to a forward in each form; see `aimgraph.planning.costs`.
        view: The module that shows the memory; None where a few operations in the graph do.
        left: Why further calls of the site do not read; empty if all do.
        gradient: Whether it can be trained: False where no gradient ever comes back to what the site computes.
    """

    site: str
    name: str
    kind: str
    channels: int
    grid: tuple[int, ...]
    parameters: int
    inputs: int
    lowering: str
    calls: tuple[ReadCall, ...]
    raw: bool = False
    note: str = ""
    function: bool = False
    costs: tuple[FormCost, ...] = ()
    view: OwnView | None = None
    left: tuple[str, ...] = ()
    gradient: bool = True

    @property
    def opaque(self) -> str:
        """Path of a module around a call of it that is kept as one call; empty if there is none."""
        return next((call.opaque for call in self.calls if call.opaque), "")

    def tells_rows(self, call: ReadCall) -> bool:
        """Whether a call of it can show every sample a row of [B, N] of its own."""
        alone = call.batch_ratio == 1 and call.spec.batch_axis is not None and not call.grouped_batch
        return alone and (self.view is None or self.view.rows)


@dataclass(frozen=True)
class MemoryPlan:
    """One memory: its shape, what it costs and what it serves.

    Attributes:
        config: What was asked for.
        shape: Resolved shape.
        size: N.
        scale: Of what its start draws; see `aimgraph.planning.start.scale_of`.
        source_parameters: Parameters of the source.
        reads: Read weights, in graph order.
        updates: Kept updates, in execution order.
        dropped: Updates that nothing would ever read.
    """

    config: AimConfig
    shape: tuple[int, ...]
    size: int
    scale: float
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
            + sum(read.parameters + (read.view.parameters if read.view else 0) for read in self.reads)
            + sum(update.parameters for update in self.updates)
        )

    @property
    def reads_rows(self) -> bool:
        """Whether every read of a memory without updates could tell the samples apart."""
        return not self.updates and all(read.tells_rows(call) for read in self.reads for call in read.calls)

    def to_dict(self) -> dict[str, Any]:
        """The memory as JSON-ready data, with its parameters."""
        config = self.config
        data: dict[str, Any] = published(asdict(replace(self, config=AimConfig())))
        data["config"] = config.model_dump(mode="json", exclude=set(config.callables))
        data["config"] |= {option: repr(getattr(config, option)) for option in config.callables}
        return data | {"parameters": self.parameters}
