"""What a compiler pass takes and gives: a program, and the contract of a pass."""

import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

from torch import fx, nn

from aimgraph.calls import Calls
from aimgraph.config import AimConfig
from aimgraph.fakes import FakeRun
from aimgraph.layers import LayerKind
from aimgraph.plan import Plan, Skipped

AIM = "aim"
"""Name of the child that holds everything a transform adds."""

WIDENED = f"{AIM}._widened"
"""Where layers over [x ; m] stand until they are lowered."""

DEFAULT = "default"
"""Name of the memory set that a transform makes."""

LEAVES = f"{AIM}._leaves"
"""Where modules that are kept as one call stand with the memory as an argument."""

LEAF_READS = "aim_leaf_reads"
"""Key in ``node.meta`` of such a call: (memory, call that reads) for each of the values it is given."""

ADDED = "aim_added"
"""Key in ``node.meta`` of every node that a pass inserted."""

READ = "aim_read"
"""Key in ``node.meta`` of a fitted view: (memory, name of the call that reads it)."""

SHAPES = "aim_shapes"
"""Key in ``node.meta``: the shapes of a tensor node at two batch sizes."""

NUMBERS = "aim_numbers"
"""Key in ``node.meta``: what a node that gives a whole number gives at two batch sizes."""


class Stage(IntEnum):
    """How far a program has been compiled."""

    TRACED = 0
    ANALYSED = 1
    PLANNED = 2
    MEMORY = 3
    LOWERED = 4
    FOLDED = 5
    EXPORTABLE = 6


@dataclass(frozen=True)
class Opaque:
    """A module that is kept as one call.

    Attributes:
        path: Its path; "" for the base itself.
        reason: Why it can't be traced.
        needs_values: Whether its forward depends on values, so that shapes alone can't run it.
    """

    path: str
    reason: str
    needs_values: bool


@dataclass(frozen=True)
class Signature:
    """What must not change: how the base is called and what it holds.

    Attributes:
        model: Class name of the base.
        placeholders: Graph -> names of its inputs.
        parameters: Names of the base's parameters and buffers.
        inputs: Shapes of the example inputs' tensors.
        batch: Example batch size.
        moded: Paths of modules whose own train or eval mode decides between the graphs.
        example: The example inputs, (args, kwargs), at a batch size that no other dimension shares.
        calls: Mode -> the convolution and linear functions that the base's own forward calls.
        again: The same at the next batch size; only where there are opaque modules.
        opaque: Modules that can't be traced and are kept as one call.
    """

    model: str
    placeholders: dict[str, tuple[str, ...]]
    parameters: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    batch: int
    moded: tuple[str, ...]
    example: tuple[tuple[Any, ...], dict[str, Any]]
    calls: dict[str, Calls] = field(default_factory=dict)
    again: dict[str, Calls] = field(default_factory=dict)
    opaque: dict[str, "Opaque"] = field(default_factory=dict)


@dataclass(frozen=True)
class HistoryEntry:
    """One pass that ran: its name, whether it changed anything, how long it took, what it declined and why."""

    name: str
    modified: bool
    seconds: float
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True)
class Program:
    """A traced base on its way to an `AimModule`.

    The module and graphs belong to the program; passes edit them in place and return a program
    with the new stage and plan. The pipeline made the one copy there is.

    Attributes:
        root: The copy of the base, with what passes added below ``aim``.
        graphs: ``both``, or ``train`` and ``eval``.
        kinds: The kind of each convolution and linear layer of the root.
        runs: Graph -> what each of its nodes gives at the example batch size, on fake tensors.
        signature: What must not change.
        configs: What was asked for, one per memory.
        plan: What is known and decided so far.
        stage: How far it has come.
        history: The passes that ran.
    """

    root: nn.Module
    graphs: dict[str, fx.Graph]
    kinds: dict[nn.Module, LayerKind]
    runs: dict[str, FakeRun]
    signature: Signature
    configs: tuple[AimConfig, ...]
    plan: Plan
    stage: Stage = Stage.TRACED
    history: tuple[HistoryEntry, ...] = ()


@dataclass(frozen=True)
class PassResult:
    """What a pass gives.

    Attributes:
        program: The program after the pass.
        modified: Whether a graph or module changed: true to fact.
        skipped: What the pass declined to do, with the reason.
    """

    program: Program
    modified: bool
    skipped: tuple[Skipped, ...] = field(default=())


class Pass(Protocol):
    """A compiler pass: a frozen dataclass whose fields are its options."""

    @property
    def name(self) -> str:
        """The pass's name, derived from its class: ``InsertMemory`` -> ``insert-memory``."""

    @property
    def requires(self) -> Stage:
        """The earliest stage that the pass works on."""

    def run(self, program: Program) -> PassResult:
        """Do the work."""


class BasePass:
    """Derives the name of a pass from its class."""

    @property
    def name(self) -> str:
        """``InsertMemory`` -> ``insert-memory``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()


def nodes_by_name(graph: fx.Graph) -> dict[str, fx.Node]:
    """Every node of `graph` by its name."""
    return {node.name: node for node in graph.nodes}
