"""What an `AimModule` knows besides its modules: plan, graphs and sets."""

import copy
import types
from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor, fx, nn

from aimgraph.compiler.aim_paths import DEFAULT
from aimgraph.compiler.graph_data import dump_graph, load_graph, plain_copy
from aimgraph.emit.asked import Asked
from aimgraph.emit.frozen import Stopped
from aimgraph.inputs.arguments import Arguments
from aimgraph.planning.plan import Plan
from aimgraph.runtime.guards import GuardError, Kind, argument_kind
from aimgraph.torch_private import GRAPH_NAMES

MODULE_DICTS = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


IN_USE = "_aim_in_use"
"""Attribute of a transformed module: what stands for ``aim`` while a memory set other than the default is in use."""

GRAPH_STATE = (*GRAPH_NAMES, "_record", IN_USE)


Chosen: TypeAlias = tuple[str, tuple[str, ...] | None, bool]
"""The set in use, the set of every sample, and whether the memory takes part."""


@dataclass(frozen=True)
class ConcatSite:
    """A layer whose weight holds its read weights.

    Attributes:
        site: Path of the layer.
        paths: Every path that it is registered under.
        keys: State-dict keys of the read weights, in the order of their channels.
        channels: k of each.
        shape: Of the weight, with those of the reads.
    """

    site: str
    paths: tuple[str, ...]
    keys: tuple[str, ...]
    channels: tuple[int, ...]
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Compiled:
    """What was compiled from a graph.

    Attributes:
        forward: The function.
        attributes: What torch keeps about it on the module.
    """

    forward: Any
    attributes: dict[str, Any]

    def copy(self) -> "Compiled":
        """The same for another module: ``torch.compile`` counts what it makes of one code object, and gives up at 8."""
        old = self.forward
        code = old.__code__.replace()
        made = types.FunctionType(code, old.__globals__, old.__name__, old.__defaults__, old.__closure__)
        made.__kwdefaults__ = old.__kwdefaults__
        vars(made).update(vars(old))
        return Compiled(made, self.attributes)


@dataclass
class Record:
    """What an `AimModule` knows besides its modules.

    Attributes:
        plan: What was inserted where.
        base_class: Class of the base.
        base_attributes: Names of the base's plain attributes.
        lost_methods: Methods of the base's class that the emitted module does not have.
        inputs: The example inputs, (args, kwargs), with meta tensors, or the numbers of lengths, indices and masks.
        moded: Paths of modules whose own mode decides between train and eval graph.
        graphs: ``aim.both``, or ``aim.train`` and ``aim.eval``: with memory; ``base.`` without; ``_aim_in_use.``
            of other memory sets than the default one, made when the first is used.
        concat_sites: Layers in concat form.
        held: Mode of the model -> paths of the base's modules that its own ``train()`` keeps in the other one.
        frozen: Whether the base stays in eval mode.
        lean: Whether a frozen base keeps only what the gradients still wanted need.
        stopped: What required gradients before it was frozen.
        enabled: Whether the memory takes part.
        present: Name of the graph that runs.
        running: What was compiled from it.
        training: Whether the module was in train mode when it was chosen.
        checkpointed: Forward that may be repeated in the backward pass (`checkpointed_calls`) -> what was chosen in it.
        compiled: Graph, and whether in its lean form -> what was compiled from it.
        shared: Whether a copy has the same graphs.
        given_out: Whether somebody may hold a graph, and change it.
        eager: Graph and sizes of inputs -> what the graph says where the base runs in its place; else None.
        standing: The layers that read and where they are registered, as they were when that was last looked at.
        told: The questions of guards that have been reported to the user.
        kinds: Of the example inputs, (args, kwargs).
        asked: What the example inputs are by name.
        sets: Memory set besides the default one -> whether it shares that one's read weights.
        shared_reads: Parameters of the default set that required gradients before they were fixed, for others to share
            or by `freeze_reads`.
        fixed_reads: Whether `freeze_reads` has fixed them.
        scales: Memory and read -> b of the U(-b, b) that its weight was drawn from, with ``start="zero_values"``.
        chosen: The set in use.
        samples: The set of every sample, where each has its own.
        by_sample: Whether each has; what `torch.compile` makes must not depend on the names.
        layers: Paths of the base's convolutions and linear layers whose calls count as theirs.
        other_passes: Names of the passes that changed the graph besides those that insert a memory.
        batches: The batch sizes that the base was looked at, where they are others than one and the next.
        given: State-dict key of the base -> some values that it had when it was transformed.
        grad: Whether its forward differentiates, and runs with gradients recorded only.
    """

    plan: Plan
    base_class: type[nn.Module]
    base_attributes: tuple[str, ...]
    lost_methods: tuple[str, ...]
    inputs: Arguments
    moded: tuple[str, ...]
    graphs: dict[str, fx.Graph]
    concat_sites: tuple[ConcatSite, ...] = ()
    held: dict[bool, tuple[str, ...]] = field(default_factory=dict)
    frozen: bool = False
    lean: bool = True
    stopped: Stopped = field(default_factory=Stopped)
    enabled: bool = True
    present: str = field(default="", compare=False)
    running: Any = field(default=None, compare=False)
    training: bool = field(default=False, compare=False)
    checkpointed: MutableMapping[Any, set[Chosen]] = field(default_factory=WeakKeyDictionary, compare=False)
    compiled: dict[tuple[str, bool], Compiled] = field(default_factory=dict, compare=False)
    shared: bool = field(default=False, compare=False)
    given_out: bool = field(default=False, compare=False)
    eager: dict[Any, GuardError | None] = field(default_factory=dict, compare=False)
    standing: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    told: set[str] = field(default_factory=set, compare=False)
    kinds: tuple[tuple[Kind, ...], dict[str, Kind]] = field(default=((), {}), compare=False)
    asked: Asked = field(default_factory=Asked, compare=False)
    sets: dict[str, bool] = field(default_factory=dict)
    shared_reads: frozenset[str] = frozenset()
    fixed_reads: bool = False
    scales: dict[tuple[str, str], float] = field(default_factory=dict)
    chosen: str = DEFAULT
    samples: tuple[str, ...] | None = None
    by_sample: bool = False
    layers: frozenset[str] = frozenset()
    other_passes: tuple[str, ...] = ()
    batches: tuple[int, int] | None = None
    grad: bool = False
    given: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        args, kwargs = self.inputs
        self.kinds = tuple(map(argument_kind, args)), {name: argument_kind(value) for name, value in kwargs.items()}

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        state |= {
            "compiled": {},
            "running": None,
            "shared": False,
            "given_out": False,
            "eager": {},
            "told": set(),
            "standing": (),
        }
        del state["checkpointed"]
        return state | {"graphs": {name: dump_graph(graph) for name, graph in self.graphs.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        graphs = {name: load_graph(data) for name, data in state["graphs"].items()}
        vars(self).update(state, graphs=graphs, checkpointed=WeakKeyDictionary())

    def choose(self, *, train: bool, kind: str) -> None:
        """Let the graph of a mode be the one that runs, and of a kind, where the memory takes part."""
        self.training = train
        kind = kind if self.enabled else "base"
        mode = "train" if train and not self.frozen else "eval"
        self.present = f"{kind}.{mode if f'{kind}.{mode}' in self.graphs else 'both'}"

    @property
    def form(self) -> tuple[str, bool]:
        """The graph that runs, and whether it runs in its lean form."""
        return self.present, self.frozen and self.lean

    @property
    def choice(self) -> Chosen:
        """What runs besides the mode."""
        return self.chosen, self.samples, self.enabled

    def forget_others(self) -> None:
        """Drop what was made of the graph that runs: those of memory sets, its lean form, and what was compiled."""
        self.compiled = {key: one for key, one in self.compiled.items() if key[0] != self.present}
        if self.present.startswith("aim."):
            self.forget_sets()

    def forget_sets(self) -> None:
        """Drop the graphs of memory sets, and what was compiled from them."""
        self.graphs = {key: graph for key, graph in self.graphs.items() if not key.startswith(IN_USE)}
        self.compiled = {key: one for key, one in self.compiled.items() if not key[0].startswith(IN_USE)}

    @property
    def graph(self) -> fx.Graph:
        """The graph that runs."""
        return self.graphs[self.present]

    def give_out(self) -> fx.Graph:
        """The graph that runs, to be changed by whoever asks; copies have their own from now on."""
        if self.shared:
            self.graphs = {name: plain_copy(graph) for name, graph in self.graphs.items()}
        self.shared, self.given_out = False, True
        return self.graph

    def copy(self) -> "Record":
        """One with the same graphs, which nobody can change, or with graphs of its own."""
        if self.given_out:
            made = copy.copy(self)
            made.standing = ()
            return made
        self.shared = True
        for graph in self.graphs.values():
            graph.owning_module = None  # it would live as long as any copy
        return replace(
            self,
            graphs=dict(self.graphs),
            sets=dict(self.sets),
            compiled={name: made.copy() for name, made in self.compiled.items()},
            eager=dict(self.eager),
            standing=(),
            checkpointed=WeakKeyDictionary(),
        )


EXTRA_STATE = ("get_extra_state", "set_extra_state")
"""Methods of a base that its checkpoints need."""


def record_of(aim: Any) -> Record:
    """What is known of a transformed module."""
    record: Record = aim._record
    return record
