"""The emitted module: a `torch.fx.GraphModule` with the base inside and its memory under ``aim``."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Never, Self

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode

from aimgraph.compiler.aim_paths import AIM, DEFAULT
from aimgraph.compiler.graph_data import plain_copy
from aimgraph.copies import copy_results
from aimgraph.emit.bare import hooks_of_the_base, rebind_hooks
from aimgraph.emit.concat import join_concat_weights, split_concat_weights
from aimgraph.emit.described import described
from aimgraph.emit.forwards import contexts_closed, dispatched, mode_checked, without_concat
from aimgraph.emit.methods import member_of_the_base
from aimgraph.emit.one_forward import named_forward, one_forward, open_signature
from aimgraph.emit.record import EXTRA_STATE, GRAPH_STATE, IN_USE, MODULE_DICTS, Compiled, Record
from aimgraph.emit.retrace import refuse_lost_hooks, refuse_script
from aimgraph.emit.set_in_use import InUse, graphs_in_use, in_use, put_in_use
from aimgraph.emit.sets import add_set, remove_set
from aimgraph.passes.make_lean import make_lean
from aimgraph.planning.shown import shown_as_html
from aimgraph.runtime.call_names import OPAQUE_BASE
from aimgraph.runtime.finite import Writer
from aimgraph.runtime.guards import constant, guard
from aimgraph.runtime.opaque import OpaqueBase
from aimgraph.runtime.regions import enter_context
from aimgraph.runtime.state import StateCarry
from aimgraph.torch_private import COMPILED, keywords_quoted, own_call, tree_map


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

    def __new__(cls, *args: Any, **kwargs: Any) -> "AimModule":
        """One with a class of its own, as every `torch.fx.GraphModule`, whose forward stays the same function."""
        made: AimModule = super().__new__(cls, *args, **kwargs)
        type(made).forward = one_forward()
        return made

    def __init__(self, root: nn.Module | dict[str, Any], record: Record) -> None:
        super().__init__(nn.Module(), fx.Graph(), class_name=record.base_class.__name__)
        attributes = root if isinstance(root, dict) else vars(root) | hooks_of_the_base(vars(root))
        self.__dict__.update(attributes)
        rebind_hooks(self)
        self._record = record
        for name in EXTRA_STATE:
            setattr(type(self), name, getattr(record.base_class, name))  # this class is of one instance
        self.register_state_dict_post_hook(split_concat_weights)
        self.register_load_state_dict_pre_hook(join_concat_weights)
        self._select()

    @property
    def graph(self) -> fx.Graph:
        """The graph of the present mode. After changing it call `recompile`; copies of the module stay as they are."""
        refuse_lost_hooks(self)
        if record := vars(self).get("_record"):
            self._graph = record.give_out()
        self._graph.owning_module = self
        return self._graph

    @graph.setter
    def graph(self, graph: fx.Graph) -> None:
        fx.GraphModule.graph.fset(self, graph)  # type: ignore[attr-defined]
        if record := vars(self).get("_record"):
            record.give_out()
            self._graph = record.graphs[record.present] = graph

    def recompile(self) -> PythonCode:
        """Make the forward of the present mode from its graph."""
        own_call(type(self))
        record = vars(self).get("_record")
        with keywords_quoted(), self._lean_graph() if record and record.form[1] else nullcontext():
            code, forward = _compiled(type(self), super().recompile)
        if record:
            if not record.enabled and record.concat_sites:
                forward = without_concat(forward)
            if record.moded:
                forward = mode_checked(forward)
            if any(node.target is enter_context for node in self._graph.nodes):
                forward = contexts_closed(forward)
            decides = any(node.target in (guard, constant) for node in self._graph.nodes)
            forward = dispatched(forward, decides=decides)
            record.eager.clear()
            if record.given_out:  # somebody may have changed what sets copy, and what has a lean form
                record.forget_others()
            record.compiled[record.form] = Compiled(forward, {name: vars(self)[name] for name in COMPILED})
            record.running = forward
            self._look_like(forward)
        return code

    @contextmanager
    def _lean_graph(self) -> Iterator[None]:
        """Have the graph that runs stand in its lean form, to be compiled."""
        plain = self._graph
        self._graph = plain_copy(plain)
        make_lean(self._graph, self)
        try:
            yield
        finally:
            self._graph = plain

    def _look_like(self, forward: Any) -> None:
        """Give the one forward of this module the name and the arguments of a compiled one; all have the same."""
        one: Any = functools.update_wrapper(type(self).forward, forward)
        one.__wrapped__ = named_forward(forward)
        one.__signature__ = open_signature(self._record.base_class) or inspect.signature(forward)

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
            for module in self.get_submodule(AIM).modules():
                if isinstance(module, Writer):
                    module.tell()
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

    def __prepare_scriptable__(self) -> Never:
        refuse_script(self)

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

        With the last one that shares the default set's read weights, these require gradients again if they did before,
        unless `aimgraph.freeze_reads` has fixed them.

        Raises:
            ConfigError: There is none of that name, it is in use, or it is the default one.
        """
        remove_set(self, name)

    def use(self, name: str) -> None:
        """Let a memory set be the one that is read and trained, from now on.

        Raises:
            ConfigError: There is none of that name.
        """
        self._put_in_use(name)

    @contextmanager
    def using(self, names: str | Sequence[str]) -> "Iterator[AimModule]":
        """The same within a ``with`` block, or one memory set for every sample of the batches in it.

        Samples whose sets share the read weights run as one batch; others run set by set. Batch statistics in train
        mode are then those of a set's own samples.

        Args:
            names: Name of a set, or a name for each sample, in order.

        Raises:
            ConfigError: There is no set of such a name.
        """
        record = self._record
        chosen, before = record.chosen, record.samples or record.chosen
        self._put_in_use(names)
        try:
            yield self
        finally:
            record.chosen, record.samples = chosen, None
            self._put_in_use(before)

    def _put_in_use(self, names: str | Sequence[str]) -> None:
        put_in_use(self, names)
        self._select()

    def _select(self) -> None:
        """Run the graph that fits the mode, with memory or without."""
        record = self._record
        whole = self.get_submodule(AIM)._modules.get(OPAQUE_BASE.rpartition(".")[2])
        if isinstance(whole, OpaqueBase):  # the base itself as one call: it has a flag of its own
            whole.aim_borrowed[0].training = self.training and not record.frozen
        kind = IN_USE if isinstance(in_use(self), InUse) else AIM
        if kind == IN_USE and not any(name.startswith(IN_USE) for name in record.graphs):
            record.graphs |= graphs_in_use(record.graphs)
        record.choose(train=self.training, kind=kind)
        self._graph = record.graph
        if record.form not in record.compiled:
            self.recompile()
        made = record.compiled[record.form]
        record.running = made.forward
        if not hasattr(type(self).forward, "__wrapped__"):  # a copy, of which nothing was compiled
            self._look_like(made.forward)
        vars(self).update(made.attributes)

    def _attributes(self) -> dict[str, Any]:
        """Everything that is not derived from the graphs."""
        state = {key: value for key, value in self.__dict__.items() if key not in GRAPH_STATE}
        return state | hooks_of_the_base(state)

    def __getattr__(self, name: str) -> Any:
        """Members, constants of the base's class, and methods of it that only tell something of the model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            record = self.__dict__.get("_record")
            if record and name in record.lost_methods:
                return member_of_the_base(self, name)
            value = getattr(record.base_class, name, None) if record and not name.startswith("__") else None
            if value is None or callable(value) or hasattr(value, "__get__"):
                raise
            return value

    def __repr__(self) -> str:
        """The structure of the base, with a line on each memory in place of its modules."""
        return described(self)

    def __str__(self) -> str:
        """The same; ``aim.code`` is the code of its forward."""
        return described(self)

    def _repr_html_(self) -> str | None:
        """A picture of the network and its memory, for notebooks."""
        return shown_as_html(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "AimModule":
        made = memo[id(self)] = AimModule.__new__(AimModule)  # what stands on it may lead back to it
        copy_results(self, memo)
        made.__setstate__((copy.deepcopy(self._attributes(), memo), self._record.copy()))
        return made

    def __copy__(self) -> "AimModule":
        attributes = self._attributes()
        for name in MODULE_DICTS:
            attributes[name] = copy.copy(attributes[name])
        return AimModule(attributes, self._record.copy())

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return AimModule.__new__, (AimModule,), (self._attributes(), self._record)

    def __setstate__(self, state: tuple[dict[str, Any], Record]) -> None:
        AimModule.__init__(self, *state)


def _compiled(kind: Any, recompile: Callable[[], PythonCode]) -> tuple[PythonCode, Any]:
    """What torch compiles, and the forward that it puts in the place of the class's own, which is put back."""
    own = vars(kind).get("forward")
    code, made = recompile(), kind.forward
    if own is None:  # a class derived from it
        del kind.forward
    else:
        kind.forward = own
    return code, made


def _dtype(module: nn.Module) -> torch.dtype | None:
    """Of the first parameter that has a floating-point one."""
    return next((tensor.dtype for tensor in module.parameters() if tensor.is_floating_point()), None)
