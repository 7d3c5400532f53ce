"""The emitted module: a `torch.fx.GraphModule` with the base inside and its memory under ``aim``."""

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode
from torch.nn.modules.module import _WrappedHook
from torch.utils._pytree import tree_map

from aimgraph.arguments import Arguments
from aimgraph.compiler.graph_data import dump_graph, keywords_quoted, load_graph, plain_copy
from aimgraph.compiler.node_keys import AIM, DEFAULT
from aimgraph.copies import copy_results
from aimgraph.elsewhere import run_anywhere
from aimgraph.errors import TraceError
from aimgraph.plan import Plan
from aimgraph.runtime.contexts import closed_contexts, enter_context
from aimgraph.runtime.decisions import DecisionError, constant, decided
from aimgraph.runtime.kinds import Kind, argument_kind
from aimgraph.runtime.layers import AffineLayer, narrow_weight, widen_weight
from aimgraph.runtime.leaf import Whole
from aimgraph.runtime.state import StateCarry
from aimgraph.runtime.watch import WHOLE
from aimgraph.sets import (
    SAMPLES,
    add_set,
    batched,
    graphs_of,
    remove_set,
    run_by_sample,
    use_set,
    using_set,
)

_MODULE_DICTS = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")
COMPILED = ("_code", "_lineno_map", "_prologue_start")
"""What torch keeps on a module about the forward that it has compiled."""

_GRAPH_STATE = (
    *COMPILED,
    "_graph",
    "_tracer_cls",
    "_tracer_extras",
    "meta",
    "shape_env",
    "_replace_hooks",
    "_create_node_hooks",
    "_erase_node_hooks",
    "_deepcopy_hooks",
    "_record",
)


@dataclass(frozen=True)
class WidenedSite:
    """A layer whose weight holds its read weights.

    Attributes:
        site: Path of the layer.
        paths: Every path that it is registered under.
        keys: State-dict keys of the read weights, in the order of their channels.
        channels: k of each.
    """

    site: str
    paths: tuple[str, ...]
    keys: tuple[str, ...]
    channels: tuple[int, ...]


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
        forward = self.forward
        code = forward.__code__.replace()
        made = types.FunctionType(
            code, forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__
        )
        made.__kwdefaults__ = forward.__kwdefaults__
        vars(made).update(vars(forward))
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
        graphs: ``both`` or ``train`` and ``eval``: with memory.
        base_graphs: The same, without.
        widened: Layers in concat form.
        held: Mode of the model -> paths of the base's modules that its own ``train()`` keeps in the other one.
        frozen: Whether the base stays in eval mode.
        enabled: Whether the memory takes part.
        present: Name of the graph that runs: ``aim.`` or ``base.`` and its key.
        compiled: Name of a graph -> what was compiled from it.
        shared: Whether a copy has the same graphs.
        given_out: Whether somebody may hold a graph, and change it.
        led: Graph and sizes of inputs -> what the graph says where they lead elsewhere.
        told: What of this the user has heard of.
        kinds: Of the example inputs, (args, kwargs).
        sets: Memory set besides the default one -> whether it shares that one's read weights.
        chosen: The set in use.
        samples: The set of every sample, where each has its own.
        set_graphs: Set -> its graphs, made when it is first used.
    """

    plan: Plan
    base_class: type[nn.Module]
    base_attributes: tuple[str, ...]
    lost_methods: tuple[str, ...]
    inputs: Arguments
    moded: tuple[str, ...]
    graphs: dict[str, fx.Graph]
    base_graphs: dict[str, fx.Graph]
    widened: tuple[WidenedSite, ...] = ()
    held: dict[bool, tuple[str, ...]] = field(default_factory=dict)
    frozen: bool = False
    enabled: bool = True
    present: str = field(default="", compare=False)
    compiled: dict[str, Compiled] = field(default_factory=dict, compare=False)
    shared: bool = field(default=False, compare=False)
    given_out: bool = field(default=False, compare=False)
    led: dict[Any, DecisionError | None] = field(default_factory=dict, compare=False)
    told: set[str] = field(default_factory=set, compare=False)
    kinds: tuple[tuple[Kind, ...], dict[str, Kind]] = field(default=((), {}), compare=False)
    sets: dict[str, bool] = field(default_factory=dict)
    chosen: str = DEFAULT
    samples: tuple[str, ...] | None = None
    set_graphs: dict[str, dict[str, fx.Graph]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        args, kwargs = self.inputs
        self.kinds = tuple(map(argument_kind, args)), {name: argument_kind(value) for name, value in kwargs.items()}

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        state |= {"compiled": {}, "shared": False, "given_out": False, "led": {}, "told": set()}
        for name in ("graphs", "base_graphs"):
            state[name] = {mode: dump_graph(graph) for mode, graph in state[name].items()}
        state["set_graphs"] = {
            name: {mode: dump_graph(graph) for mode, graph in graphs.items()}
            for name, graphs in state["set_graphs"].items()
        }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name in ("graphs", "base_graphs"):
            state[name] = {mode: load_graph(data) for mode, data in state[name].items()}
        state["set_graphs"] = {
            name: {mode: load_graph(data) for mode, data in graphs.items()}
            for name, graphs in state["set_graphs"].items()
        }
        self.__dict__.update(state)

    def choose(self, *, train: bool, chosen: str) -> None:
        """Let the graph of a mode and of a memory set be the one that runs."""
        kind, graphs = ("aim", self.graphs) if self.enabled else ("base", self.base_graphs)
        if self.enabled and chosen != DEFAULT:
            kind = f"aim:{chosen}"
        mode = "train" if train and not self.frozen else "eval"
        self.present = f"{kind}.{mode if mode in graphs else 'both'}"

    @property
    def graph(self) -> fx.Graph:
        """The graph that runs."""
        graphs, name = self._place()
        return graphs[name]

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        graphs, name = self._place()
        graphs[name] = graph

    def _place(self) -> tuple[dict[str, fx.Graph], str]:
        kind, name = self.present.split(".")
        if kind in ("aim", "base"):
            return (self.graphs if kind == "aim" else self.base_graphs), name
        return self.set_graphs[kind.partition(":")[2]], name

    def give_out(self) -> fx.Graph:
        """The graph that runs, to be changed by whoever asks; copies have their own from now on."""
        if self.shared:
            self.graphs = {name: plain_copy(graph) for name, graph in self.graphs.items()}
            self.base_graphs = {name: plain_copy(graph) for name, graph in self.base_graphs.items()}
            self.set_graphs = {
                name: {mode: plain_copy(graph) for mode, graph in graphs.items()}
                for name, graphs in self.set_graphs.items()
            }
        self.shared, self.given_out = False, True
        return self.graph

    def copy(self) -> "Record":
        """One with the same graphs, which nobody can change, or with graphs of its own."""
        if self.given_out:
            made = Record.__new__(Record)
            made.__setstate__(self.__getstate__())
            return made
        self.shared = True
        sets = [graph for graphs in self.set_graphs.values() for graph in graphs.values()]
        for graph in (*self.graphs.values(), *self.base_graphs.values(), *sets):
            graph.owning_module = None  # it would live as long as any copy
        return replace(
            self,
            graphs=dict(self.graphs),
            base_graphs=dict(self.base_graphs),
            sets=dict(self.sets),
            set_graphs={name: dict(graphs) for name, graphs in self.set_graphs.items()},
            compiled={name: made.copy() for name, made in self.compiled.items()},
            led=dict(self.led),
        )


EXTRA_STATE = ("get_extra_state", "set_extra_state")
"""Methods of a base that its checkpoints need."""


class AimModule(fx.GraphModule):
    """A base with memory. Made by `aimgraph.transform`.

    Everything of the base keeps its name and state-dict key; everything added lives under
    ``aim``. Where the base's forward differs between train and eval mode, `train` and `eval`
    switch between two graphs.

    Args:
        root: Owner of all modules, parameters, buffers and plain attributes.
        record: The graphs and what is known about them.
    """

    _record: Record
    _graph: fx.Graph
    _code: str

    def __init__(self, root: nn.Module | dict[str, Any], record: Record) -> None:
        super().__init__(nn.Module(), fx.Graph(), class_name=record.base_class.__name__)
        attributes = root if isinstance(root, dict) else vars(root) | _hooks_of_the_base(vars(root))
        self.__dict__.update(attributes)
        rebind_hooks(self)
        self._record = record
        for name in EXTRA_STATE:
            if hasattr(record.base_class, name) and getattr(record.base_class, name) is not getattr(nn.Module, name):
                setattr(type(self), name, getattr(record.base_class, name))  # this class is of one instance
        self.register_state_dict_post_hook(_split_widened)
        self.register_load_state_dict_pre_hook(_join_widened)
        self._select()

    @property
    def graph(self) -> fx.Graph:
        """The graph of the present mode. After changing it call `recompile`; copies of the module stay as they are."""
        if record := vars(self).get("_record"):
            self._graph = record.give_out()
        self._graph.owning_module = self
        return self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        fx.GraphModule.graph.fset(self, graph)  # type: ignore[attr-defined]
        if record := vars(self).get("_record"):
            record.give_out()
            self._graph = record.graph = graph

    def recompile(self) -> PythonCode:
        """Make the forward of the present mode from its graph."""
        kind = type(self)
        if "_wrapped_call" not in vars(kind) and hasattr(kind, "_wrapped_call"):
            # a class derived from this one's, by `fully_shard`: torch would give it a call that calls itself
            kind._wrapped_call = kind._wrapped_call
        with keywords_quoted():
            code = super().recompile()
        if record := vars(self).get("_record"):
            forward = type(self).forward
            if not record.enabled and record.widened:
                forward = _without_widening(forward)
            if record.moded:
                forward = _mode_checked(forward)
            if any(node.target is enter_context for node in self._graph.nodes):
                forward = contexts_closed(forward)
            if not any(node.op == "call_module" and node.target == WHOLE for node in self._graph.nodes):
                forward = _anywhere(forward, any(node.target in (decided, constant) for node in self._graph.nodes))
            record.led.clear()
            if record.given_out and record.present.startswith("aim."):  # somebody may have changed what sets copy
                record.set_graphs.clear()
                record.compiled = {key: one for key, one in record.compiled.items() if not key.startswith("aim:")}
            type(self).forward = forward
            record.compiled[record.present] = Compiled(forward, {name: vars(self)[name] for name in COMPILED})
        return code

    def train(self, mode: bool = True) -> Self:
        """Set train or eval mode, as the base does; one frozen by `aimgraph.freeze_base` stays in eval."""
        super().train(mode)
        if "_record" in self.__dict__:
            for path in self._record.held.get(mode, ()):
                self.get_submodule(path).training = not mode
            if self._record.frozen:
                for name, child in self.named_children():
                    if name != AIM:
                        child.eval()
            self._select()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """What ``to``, ``half``, ... do; the example inputs follow the parameters to another dtype."""
        before = _dtype(self)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        after = _dtype(self)
        if before != after:
            self._record.inputs = tree_map(
                lambda leaf: leaf.to(after) if isinstance(leaf, Tensor) and leaf.dtype == before else leaf,
                self._record.inputs,
            )
        return self

    def reset_memory(self) -> None:
        """Forget all carried state: every memory starts from its source again."""
        for module in self.modules():
            if isinstance(module, StateCarry):
                module.reset()

    @property
    def memory_sets(self) -> tuple[str, ...]:
        """Names of all memory sets, ``default`` first."""
        return (DEFAULT, *self._record.sets)

    @property
    def memory_set(self) -> str:
        """Name of the set in use."""
        return self._record.chosen

    def add_memory_set(self, name: str, *, share_reads: bool = False, like: str | None = None) -> None:
        """Add a memory set: source, read weights, updates and carried state of every memory once more.

        Its parameters live under ``aim.sets.<name>``. It is drawn as by a transform, so that it changes nothing until
        it is trained, and not in use until `use` or `using` says so.

        Args:
            name: Letters, digits and underscores.
            share_reads: Give it values only, N for each memory, to be read by the default set's read weights, which
                then stop requiring gradients. It starts with the default set's values.
            like: A set to start with the values of.

        Raises:
            ConfigError: The name is taken or none; the memory is in concat form; or `share_reads` where all read
                weights are zero or a memory has updates.
        """
        add_set(self, name, share_reads=share_reads, like=like)

    def remove_memory_set(self, name: str) -> None:
        """Take a memory set away.

        Raises:
            ConfigError: There is none of that name, it is in use, or it is the default one.
        """
        remove_set(self, name)

    def use(self, name: str) -> None:
        """Let a memory set be the one that is read and trained, from now on.

        Raises:
            ConfigError: There is none of that name.
        """
        use_set(self, name)

    def using(self, names: str | Sequence[str]) -> "AbstractContextManager[AimModule]":
        """The same within a ``with`` block, or one memory set for every sample of the batches in it.

        Samples whose sets share the read weights run as one batch; others run set by set. Batch statistics in train
        mode are then those of a set's own samples.

        Args:
            names: Name of a set, or a name for each sample, in order.

        Raises:
            ConfigError: There is no set of such a name.
        """
        return using_set(self, names)

    def _select(self) -> None:
        """Run the graph that fits the mode, with memory or without."""
        record = self._record
        whole = self.get_submodule(AIM)._modules.get(WHOLE.rpartition(".")[2])
        if isinstance(whole, Whole):  # the base itself as one call: it has a flag of its own
            whole.aim_borrowed[0].training = self.training and not record.frozen
        chosen = SAMPLES if record.samples is not None and batched(self, record.samples) else record.chosen
        if chosen != DEFAULT and chosen not in record.set_graphs:
            record.set_graphs[chosen] = graphs_of(self, chosen)
        record.choose(train=self.training, chosen=chosen)
        self._graph = record.graph
        if record.present not in record.compiled:
            self.recompile()
        made = record.compiled[record.present]
        type(self).forward = made.forward if record.samples is None else _by_sample(made.forward)
        vars(self).update(made.attributes)

    def _attributes(self) -> dict[str, Any]:
        """Everything that is not derived from the graphs."""
        state = {key: value for key, value in self.__dict__.items() if key not in _GRAPH_STATE}
        return state | _hooks_of_the_base(state)

    def __getattr__(self, name: str) -> Any:
        """Members, and constants of the base's class."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            record = self.__dict__.get("_record")
            if record and name in record.lost_methods:
                raise AttributeError(
                    f"{name}() is a method of {record.base_class.__name__}, and the transformed module has its forward "
                    "only: call that, or transform the part below it"
                ) from None
            value = getattr(record.base_class, name, None) if record and not name.startswith("__") else None
            if value is None or callable(value) or hasattr(value, "__get__"):
                raise
            return value

    def __deepcopy__(self, memo: dict[int, Any]) -> "AimModule":
        copy_results(self, memo)
        return AimModule(copy.deepcopy(self._attributes(), memo), self._record.copy())

    def __copy__(self) -> "AimModule":
        attributes = self._attributes()
        for name in _MODULE_DICTS:
            attributes[name] = copy.copy(attributes[name])
        return AimModule(attributes, self._record.copy())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return (AimModule, (self._attributes(), self._record))

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__reduce_ex__(2)


def _dtype(module: nn.Module) -> torch.dtype | None:
    """Of the first parameter that has a floating-point one."""
    return next((tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()), None)


def _hooks_of_the_base(state: dict[str, Any]) -> dict[str, Any]:
    """State-dict hooks without the two that an `AimModule` registers for itself, apart from any module.

    torch wraps a load hook together with a reference to its module; see `rebind_hooks`.
    """
    ours = (_split_widened, _join_widened)
    saved: dict[int, Any] = state["_state_dict_hooks"]
    loaded: dict[int, Any] = state["_load_state_dict_pre_hooks"]
    return {
        "_state_dict_hooks": OrderedDict((key, hook) for key, hook in saved.items() if hook not in ours),
        "_load_state_dict_pre_hooks": OrderedDict(
            (key, (wrapped.hook, wrapped.with_module)) for key, wrapped in loaded.items() if wrapped.hook not in ours
        ),
    }


def rebind_hooks(module: nn.Module) -> None:
    """Wrap the load hooks that `_hooks_of_the_base` took apart for `module`."""
    hooks: dict[int, Any] = module._load_state_dict_pre_hooks
    for key, (hook, with_module) in list(hooks.items()):
        hooks[key] = _WrappedHook(hook, module if with_module else None)


def base_parts(aim: AimModule) -> dict[str, Any]:
    """The ``__dict__`` of the base inside `aim`, around the same modules and tensors.

    Layers in concat form are still widened; see `narrow`.
    """
    record = aim._record
    keep = {*_MODULE_DICTS, "training", *record.base_attributes}
    parts = {key: value for key, value in aim.__dict__.items() if key in keep or key.endswith("_hooks")}
    for name in _GRAPH_STATE:
        parts.pop(name, None)
    parts |= _hooks_of_the_base(parts)
    parts["_modules"] = {name: module for name, module in aim._modules.items() if name != AIM}
    return parts


def narrow(layer: AffineLayer, widened: WidenedSite) -> None:
    """Give a widened layer its own weight and channel count back."""
    weight, _ = narrow_weight(layer, layer.weight.detach(), list(widened.channels))
    layer.weight = nn.Parameter(weight.clone(), requires_grad=layer.weight.requires_grad)
    if isinstance(layer, nn.Linear):
        layer.in_features -= sum(widened.channels)
    else:
        layer.in_channels -= layer.groups * sum(widened.channels)


def _split_widened(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """State-dict hook: a widened weight is written as the base's weight and the read weights."""
    assert isinstance(module, AimModule)
    for site in module._record.widened:
        layer = module.get_submodule(site.site)
        assert isinstance(layer, AffineLayer)
        for key in (f"{prefix}{path}.weight" for path in site.paths):
            weight, reads = narrow_weight(layer, state[key], list(site.channels))
            state[key] = weight
            state.update({f"{prefix}{name}": read for name, read in zip(site.keys, reads, strict=True)})


def _join_widened(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    _metadata: Any,
    _strict: bool,
    missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    """Load hook: a base-shaped weight and ``aim`` keys are put together into the widened weight."""
    assert isinstance(module, AimModule)
    for site in module._record.widened:
        layer = module.get_submodule(site.site)
        assert isinstance(layer, AffineLayer)
        keys = [f"{prefix}{path}.weight" for path in site.paths]
        base, reads = narrow_weight(layer, layer.weight.detach(), list(site.channels))
        parts = dict(zip((keys[0], *(f"{prefix}{name}" for name in site.keys)), (base, *reads), strict=True))
        aliases = [state.pop(key) for key in keys if key in state]
        given = {name: state.pop(name) for name in parts if name in state} | ({keys[0]: aliases[0]} if aliases else {})
        missing += [name for name in parts if name not in given]
        for name, value in given.items():
            if value.shape == parts[name].shape:
                parts[name] = value.to(base)
            else:
                errors.append(
                    f"size mismatch for {name}: the checkpoint has {list(value.shape)}, "
                    f"this model needs {list(parts[name].shape)}"
                )
        weight, *reads = parts.values()
        state.update(dict.fromkeys(keys, widen_weight(layer, weight, reads)))


def _mode_checked(forward: Any) -> Any:
    """A forward that refuses to run the train graph for a part of the base in eval mode, or vice versa."""

    @functools.wraps(forward)  # torch.export goes by the signature
    def run(self: AimModule, *args: Any, **kwargs: Any) -> Any:
        record = self._record
        train = self.training and not record.frozen
        for path in record.moded:
            if path and self.get_submodule(path).training != (train != (path in record.held.get(train, ()))):
                have, want = ("eval", "train") if train else ("train", "eval")
                raise TraceError(
                    f"{path} is in {have} mode and the model in {want} mode; its forward depends on that mode, and "
                    "there is one graph for all in train and one for all in eval mode: call train() or eval() on the "
                    "whole model, or aimgraph.freeze_base to keep the base in eval mode"
                )
        return forward(self, *args, **kwargs)

    return run


def _anywhere(forward: Any, decides: bool) -> Any:
    """A forward that has the base's own stand in for it where the inputs lead elsewhere."""

    @functools.wraps(forward)
    def run(self: AimModule, *args: Any, **kwargs: Any) -> Any:
        return run_anywhere(forward, self, args, kwargs, decides=decides)

    return run


def _by_sample(forward: Any) -> Any:
    """A forward in which every sample has a memory set of its own."""

    @functools.wraps(forward)
    def run(self: AimModule, *args: Any, **kwargs: Any) -> Any:
        return run_by_sample(forward, self, args, kwargs)

    return run


def contexts_closed(forward: Any) -> Any:
    """A forward that leaves grad mode and autocast as they were, even if it fails in the middle of a region."""

    @functools.wraps(forward)
    def run(self: AimModule, *args: Any, **kwargs: Any) -> Any:
        with closed_contexts():
            return forward(self, *args, **kwargs)

    return run


def _without_widening(forward: Any) -> Any:
    """A forward of the base's graph that sees the widened layers with their own weights."""

    @functools.wraps(forward)
    def run(self: AimModule, *args: Any, **kwargs: Any) -> Any:
        weights: dict[str, Tensor] = {}
        for site in self._record.widened:
            layer = self.get_submodule(site.site)
            assert isinstance(layer, AffineLayer)
            weights[f"{site.site}.weight"] = narrow_weight(layer, layer.weight, list(site.channels))[0]
        shell = _Shell(self, forward)
        return torch.func.functional_call(shell, {f"inner.{k}": v for k, v in weights.items()}, args, kwargs)

    return run


class _Shell(nn.Module):
    """Calls a given forward on `inner`, so that `functional_call` can swap tensors below it."""

    def __init__(self, inner: nn.Module, call: Any) -> None:
        super().__init__()
        self.inner = inner
        self.call = call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(self.inner, *args, **kwargs)
