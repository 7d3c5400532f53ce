"""Sites as data: layers that can read, what can't, and where updates can be written."""

from dataclasses import dataclass
from typing import Any


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
        grouped_batch: Whether the batch is folded into the channels, one group of the convolution per sample;
            the axes are then those of the memory's own term.
        opaque: Path of the module that is kept as one call, whose node this is; empty if the node is the site's own.
        name: What the call is named after: the site's path, unless calls of one name are several sites.
        turn: Which call of that name it is, of those outside of opaque modules on inputs of as many dimensions, from 0;
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
    grouped_batch: bool = False
    opaque: str = ""
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
        left: Why further calls of it do not read; empty if all do.
        gradient: Whether a gradient comes back to any of its calls, as far as that can be told.
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
    left: tuple[str, ...] = ()
    gradient: bool = True

    @property
    def opaque(self) -> str:
        """Path of a module around a call of it that is kept as one call; empty if there is none."""
        return next((call.opaque for call in self.calls if call.opaque), "")


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


_PUBLISHED = {"opaque": "leaf", "grouped_batch": "folded"}
"""Names of fields in the JSON of a plan, where they are not those in the code."""


def published(data: Any) -> Any:
    """A plan's data under the names that its JSON has had from the first."""
    if isinstance(data, dict):
        return {_PUBLISHED.get(key, key): published(value) for key, value in data.items()}
    return type(data)(map(published, data)) if isinstance(data, list | tuple) else data
