"""What a compiler pass takes and gives: a program, and the contract of a pass."""

import re
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Protocol

from torch import fx, nn

from aimgraph.compiler.signature import Classified, Signature
from aimgraph.config import AimConfig
from aimgraph.fake.run import FakeRun
from aimgraph.planning.plan import Plan
from aimgraph.planning.sites import Skipped


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
    with the new plan; the pipeline notes the stage. The pipeline made the one copy there is.

    Attributes:
        root: The copy of the base, with what passes added below ``aim``.
        graphs: ``both``, or ``train`` and ``eval``.
        kinds: How each convolution and linear layer of the root can read.
        runs: Graph -> what each of its nodes gives at the example batch size, on fake tensors.
        signature: What must not change.
        configs: What was asked for, one per memory.
        plan: What is known and decided so far.
        stage: How far it has come.
        history: The passes that ran.
        traced: The graphs as they were traced; no pass edits these.
    """

    root: nn.Module
    graphs: dict[str, fx.Graph]
    kinds: dict[nn.Module, Classified]
    runs: dict[str, FakeRun]
    signature: Signature
    configs: tuple[AimConfig, ...]
    plan: Plan
    stage: Stage = Stage.TRACED
    history: tuple[HistoryEntry, ...] = ()
    traced: dict[str, fx.Graph] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """What a pass changes of what is there to stay; the verifier allows exactly that, in every graph together.

    Attributes:
        shapes: Names of nodes of the base that give another shape.
        inputs: Names of inputs that are new or gone.
        outputs: Outputs that are new, gone or of another shape: ``output``, or ``output[0]``, ``output['loss']``, ...
        names: Names of parameters and buffers of the base that are new or gone.
    """

    shapes: frozenset[str] = frozenset()
    inputs: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()

    def __or__(self, other: "Changes") -> "Changes":
        """What either changes."""
        return Changes(*(getattr(self, item.name) | getattr(other, item.name) for item in fields(self)))


@dataclass(frozen=True)
class PassResult:
    """What a pass gives.

    Attributes:
        program: The program after the pass.
        modified: Whether a graph or module changed: true to fact.
        skipped: What the pass declined to do, with the reason.
        changes: What it changes of the base, its inputs and its outputs.
    """

    program: Program
    modified: bool
    skipped: tuple[Skipped, ...] = ()
    changes: Changes = Changes()


class Pass(Protocol):
    """A compiler pass: a frozen dataclass whose fields are its options."""

    @property
    def name(self) -> str:
        """The pass's name, derived from its class: ``InsertMemory`` -> ``insert-memory``."""

    @property
    def requires(self) -> Stage:
        """The earliest stage that the pass works on."""

    @property
    def ensures(self) -> Stage:
        """The stage that the program has reached after the pass, at least."""

    def run(self, program: Program) -> PassResult:
        """Do the work."""


class BasePass:
    """Derives the name of a pass from its class; by default it works at any stage and stays there."""

    requires: Stage = Stage.TRACED
    ensures: Stage = Stage.TRACED

    @property
    def name(self) -> str:
        """``InsertMemory`` -> ``insert-memory``."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()


def nodes_by_name(graph: fx.Graph) -> dict[str, fx.Node]:
    """Every node of `graph` by its name."""
    return {node.name: node for node in graph.nodes}
