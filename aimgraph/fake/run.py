"""Running modules and graphs on fake tensors: shapes without arithmetic, and without side effects."""

import copy
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from aimgraph.copies import copy_module, is_of_torch, modules_of
from aimgraph.fake.faker import Faker, run_for_real
from aimgraph.fake.operations import HELD, Recorder
from aimgraph.fake.outcomes import Derived, own_tensors
from aimgraph.fake.tensors import fake_inputs, faked
from aimgraph.reproducible import kept_python_randomness
from aimgraph.runtime.opaque import OpaqueCall
from aimgraph.runtime.regions import closed_contexts, enter_context, leave_context
from aimgraph.torch_private import FakeTensorMode, unset_fake_temporarily


class FakeRun:
    """Runs a graph's nodes on fake tensors and keeps what each node gave.

    Args:
        root: Owner of the modules and attributes that the graph names.
        inputs: Argument of the root's forward -> value; tensors become fake.
        faker: Has made the tensors of the root fake already, and says which modules depend on values. Without it they
            are made fake when needed, and a module that fails on them runs on values.
        train: The mode that modules run in.
        grad: Whether gradients are recorded; as for the faker, if there is one.

    Attributes:
        values: What each node gave.
        writes: (a node, an input of it that it overwrites in place).
        starts: How many operations there were before a node ran.
        recorder: Lists the operations on the inputs, and on the parameters and buffers that the faker has made.
        draws: How many calls drew from Python's or numpy's random numbers; here each draws what the first does.
        on_values: Path of a module that fails on fake tensors and runs on values -> what it raised; None with a faker.
    """

    def __init__(
        self,
        root: nn.Module,
        inputs: dict[str, Any],
        faker: Faker | None = None,
        *,
        train: bool = False,
        grad: bool = False,
    ) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True) if faker is None else faker.mode
        self.root = root
        self.inputs: dict[str, Any] = fake_inputs(inputs, self.mode)
        self.recorder = Recorder(() if faker is None else faker.tensors, self.inputs)
        self.values: dict[fx.Node, Any] = {}
        self.writes: list[tuple[fx.Node, fx.Node]] = []
        self.starts: dict[fx.Node, int] = {}
        self._copies: dict[int, Any] = {}
        self._adopted = False
        self.grad = grad if faker is None else faker.grad
        self._grad = self.grad
        self._contexts = 0
        self._derived = Derived() if faker is None else faker.derived
        self._memo: dict[int, Any] = {} if faker is None else dict(faker.memo)
        self._alive: list[Any] = [] if faker is None else [faker]  # keeps the identities above from being used again
        self.train = train
        self.draws = 0
        self._real = {id(root.get_submodule(path)) for path in (() if faker is None else faker.real)}
        self.on_values: dict[str, Exception] | None = {} if faker is None else None

    def run(self, graph: fx.Graph) -> None:
        """Run every node of `graph` that has no value yet, in order."""
        with closed_contexts():
            for node in graph.nodes:
                if node not in self.values:
                    self.starts[node] = len(self.recorder.operations)
                    self.values[node] = self.run_node(node)

    def take(self, inputs: dict[str, Any]) -> None:
        """Let the next run be one on these inputs, with modules that are as the last one has left them."""
        self.inputs = fake_inputs(inputs, self.mode)
        self.recorder.take(self.inputs)
        self.values, self.writes, self.starts = {}, [], {}
        self._grad, self._contexts = self.grad, 0

    @contextmanager
    def adopted(self, copy: nn.Module) -> Iterator[None]:
        """Call the modules of `copy`, which is a fake copy of the root in this run's mode, instead of making others."""
        root, self.root, self._adopted = self.root, copy, True
        try:
            yield
        finally:
            self.root, self._adopted = root, False

    def rerun(self, graph: fx.Graph, touched: set[fx.Node]) -> None:
        """Run the `touched` nodes of `graph` again, on fresh copies of the modules they call."""
        for node in touched:
            self.values.pop(node, None)
            if node.op == "call_module":
                self._copies.pop(id(self.root.get_submodule(str(node.target))), None)
        self.run(graph)

    def run_node(self, node: fx.Node) -> Any:
        """What `node` gives, computed from the values of its inputs.

        Also notes in `writes` which of its inputs the node overwrites in place.
        """
        args, kwargs = mutable(fx.map_arg((node.args, node.kwargs), lambda n: self.values[n]))
        called = self.root.get_submodule(str(node.target)) if node.op == "call_module" else None
        draws = self.draws

        def key() -> Any:
            if self.grad or self._contexts or self.draws != draws or not node.op.startswith("call_"):
                return None
            target = node.target if called is None else self._copied(called)
            return self._derived.key(target, args, kwargs, self.recorder, train=None if self._adopted else self.train)

        def own() -> list[Tensor]:
            held = [] if called is None else own_tensors(self._copied(called))
            return [self._memo.get(id(tensor), tensor) for tensor in held]

        call = partial(self._call, node, called, args, kwargs)
        value, written = self._derived.run(key, (args, kwargs), own, self.mode, self.recorder, call)
        self.writes += [(node, n) for n in node.all_input_nodes if any(self.values[n] is one for one in written)]
        return value

    def _copied(self, module: nn.Module) -> nn.Module:
        """The fake copy of a module that has run already, or the module itself, which such a copy is like."""
        if not self._real and id(module) not in self._copies:
            return module
        copied: nn.Module = self._fake(module)
        return copied

    def _call(self, node: fx.Node, called: nn.Module | None, args: Any, kwargs: Any) -> Any:
        module = None if called is None else self._fake(called)
        with self.recorder, self.mode, torch.set_grad_enabled(self._grad):
            try:
                value = self._call_as(node, module, args, kwargs)
            except Exception as error:  # whatever its code raises where there are no values to decide by
                if self.on_values is None or called is None or id(called) in self._real:
                    raise
                self.on_values[str(node.target)] = error
                self._real.add(id(called))
                self._copies.pop(id(called))
                value = self._call_as(node, self._fake(called), args, kwargs)
            if node.target in (enter_context, leave_context):
                self._grad = torch.is_grad_enabled()
                self._contexts += 1 if node.target is enter_context else -1
        return value

    def _call_as(self, node: fx.Node, module: Any, args: Any, kwargs: Any) -> Any:
        target: Any = node.target
        match node.op:
            case "placeholder":
                return self.inputs[target]
            case "get_attr":
                return self._fake(operator.attrgetter(target)(self.root))
            case "call_module":
                if is_of_torch(module):
                    return module(*args, **kwargs)
                with kept_python_randomness() as drawn:
                    value = module(*args, **kwargs)
                self.draws += bool(drawn)
                return value
            case "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            case "call_function":
                return target(*args, **kwargs)
        return args[0]

    def _fake(self, thing: Any) -> Any:
        """The fake copy of a module or tensor; one per object, so shared ones stay shared."""
        if self._adopted:
            return thing
        if id(thing) not in self._copies:
            self._alive.append(thing)
            new = [tensor for tensor in _tensors(thing) if id(tensor) not in self._memo]
            self._alive += new
            self._memo |= faked(new, self.mode)
            if isinstance(thing, nn.Module):  # any other tensor is a constant
                self.recorder.note([self._memo[id(tensor)] for tensor in new], HELD, len(self.recorder.alive))
            if id(thing) in self._real or getattr(thing, "needs_values", False):
                self._copies[id(thing)] = nn.Module()
                self._run_for_real(thing, self._copies[id(thing)])
            else:
                self._copies[id(thing)] = self._fake_copy(thing)
        return self._copies[id(thing)]

    def _fake_copy(self, thing: Any) -> Any:
        """A copy around fake tensors; what is in it and depends on values runs on such."""
        memo = dict(self._memo)
        with unset_fake_temporarily(), torch.no_grad():
            made = copy_module(thing, memo) if isinstance(thing, nn.Module) else copy.deepcopy(thing, memo)
        self._set_mode(made)
        for module in modules_of(thing):
            if id(module) in self._real:
                self._run_for_real(module, memo[id(module)])
        return made

    def _run_for_real(self, module: nn.Module, fake: nn.Module) -> None:
        with unset_fake_temporarily():
            twin = copy_module(module, {id(t): t for t in module.outside()} if isinstance(module, OpaqueCall) else None)
        self._set_mode(twin)
        run_for_real(fake, twin, self.mode)

    def _set_mode(self, thing: Any) -> None:
        for module in modules_of(thing):
            module.training = self.train


def mutable(value: Any) -> Any:
    """Lists and dicts that may be changed, as the printed code makes them, instead of torch.fx's own."""
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(map(mutable, value))
    if isinstance(value, immutable_list):
        return [mutable(item) for item in value]
    if isinstance(value, immutable_dict):
        return {key: mutable(item) for key, item in value.items()}
    return value


def _tensors(thing: Any) -> list[Tensor]:
    """A tensor itself, or the tensors of a module and of those that it holds without owning them."""
    if isinstance(thing, Tensor):
        return [thing]
    own = [chain(m.parameters(recurse=False), m.buffers(recurse=False)) for m in modules_of(thing)]
    return list(chain.from_iterable(own))
