"""What the nodes of a trace give on the example inputs, and asking it again at every call."""

import builtins
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.attention
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from aimgraph.compiler.graph_text import target_name, told
from aimgraph.compiler.node_keys import GUARDS
from aimgraph.errors import TraceError
from aimgraph.fake.run import FakeRun
from aimgraph.runtime.call_names import CallNames
from aimgraph.runtime.guards import QUESTIONS, guard
from aimgraph.runtime.inplace import NAMES
from aimgraph.runtime.layer_kinds import FUNCTIONS
from aimgraph.torch_private import current_function_mode, function_mode_popped, storage_of, tree_leaves
from aimgraph.user_code import asking_line

PLAIN_ISINSTANCE = isinstance
"""The built-in one, which takes a proxy for a proxy."""


class RecordFactories(TorchFunctionMode):
    """Makes tensors out of nothing part of the graph: ``torch.rand(3)`` is drawn at every call.

    What is done to real tensors is done once, while tracing: one that was there before the forward stays as it is.
    """

    def __init__(self, tracer: "ValueTracer") -> None:
        super().__init__()
        self.tracer = tracer
        self.made: dict[int, Tensor] = {}  # by the memory that they are in, which is kept from being used again

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._refuse_writes(func, args, kwargs)
        if func in _FROM_DATA and any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
            return self.tracer.create_proxy("call_function", func, args, kwargs)
        result = func(*args, **kwargs)
        if self.tracer.aside:
            return result
        given = tree_leaves((args, kwargs))
        if any(isinstance(leaf, torch.Generator) for leaf in given):
            raise TraceError("the forward draws from a torch.Generator, whose state a graph does not keep")
        if type(result) is not Tensor or any(isinstance(leaf, Tensor | fx.Proxy) for leaf in given):
            self._note_made(result, given)
            return result
        return self.tracer.create_proxy("call_function", func, args, kwargs)

    def _refuse_writes(self, func: Any, args: Any, kwargs: Any) -> None:
        """Refuse a function that overwrites a real tensor that the forward has not made, or sets an attribute of it."""
        if self.tracer.aside:
            return
        for leaf in _real(tree_leaves(_written(func, args, kwargs))):
            if storage_of(leaf) not in self.made:
                raise TraceError(
                    f"the forward changes a tensor in place ({func.__name__}) that is no parameter and no buffer, or "
                    "that it did not get as self.NAME, which a graph does not keep"
                )

    def _note_made(self, result: Any, given: list[Any]) -> None:
        """Know the memory of real tensors that a function gives, but for views of what it was given."""
        known = {storage_of(leaf) for leaf in _real(given)} if (made := _real(tree_leaves(result))) else set()
        self.made |= {storage_of(leaf): leaf for leaf in made if storage_of(leaf) not in known}


def _real(leaves: list[Any]) -> list[Tensor]:
    """The dense tensors among leaves, without what stands for one."""
    return [leaf for leaf in leaves if PLAIN_ISINSTANCE(leaf, Tensor) and leaf.layout is torch.strided]


def _written(func: Any, args: Any, kwargs: Any) -> Any:
    """What a function changes, by torch's rules for names: ``mul_``, ``__imul__``, ``out=``, ``x.data = y``."""
    name = getattr(func, "__name__", "")
    inplace = name.endswith("_") and not name.endswith("__")
    if inplace or name in _WRITERS or kwargs.get("inplace"):
        return args[:1]
    return kwargs.get("out")


_WRITERS = frozenset(("__set__", "__delete__", "__setitem__", *(f"__{name}__" for name in NAMES)))
"""Methods that change their tensor, and are not named as those that work in place."""


_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)
"""Factories that look into what they are given, and so would not take a proxy."""


UNKNOWN = object()
"""In place of a value that could not be derived."""


class ValueTracer(fx.Tracer):
    """Knows what every node that it records gives on the example inputs, and notes what the forward asks of that.

    Args:
        run: Derives what each node gives on the example inputs.
        names: Names the calls of convolution and linear functions, and knows which module's forward runs.
    """

    def __init__(self, run: FakeRun, names: CallNames) -> None:
        super().__init__()
        self.run = run
        self.names = names
        self.aside = False
        self.unknown: dict[fx.Node, Exception] = {}
        self.asked: set[tuple[fx.Node, str]] = set()
        self.varying: set[fx.Node] = set()  # nodes on which an input of the model has influence
        self.probes: list[tuple[fx.Node, types.FrameType, int]] = []

    def known(self, proxy: fx.Proxy) -> Any:
        """What `proxy` gives on the example inputs; `UNKNOWN` if that could not be derived."""
        return self.run.values.get(proxy.node, UNKNOWN)

    def has(self, proxy: fx.Proxy, name: str) -> bool:
        """Whether what `proxy` gives has an attribute; any that can't be told."""
        value = self.known(proxy)
        return value is UNKNOWN or hasattr(Tensor if isinstance(value, Tensor) else value, name) or hasattr(value, name)

    def value_of(self, proxy: fx.Proxy, use: str) -> Any:
        """What `proxy` gives on the example inputs, if that is not the value of a tensor.

        Raises:
            TraceError: It is one, or could not be derived.
        """
        value = self.known(proxy)
        if value is UNKNOWN or (isinstance(value, Tensor) and use != "len()"):
            why = self.unknown.get(proxy.node, "a tensor's value only exists at run time")
            raise TraceError(f"the forward needs {use} of {proxy.node.name}: {why}")
        return value

    def ask(self, proxy: fx.Proxy, question: str, asker: types.FrameType | None = None) -> Any:
        """The answer to one of `QUESTIONS`; the graph asks again at every call, if it depends on the inputs.

        Args:
            proxy: What it is asked of.
            question: Which one.
            asker: The frame that asks, where it may be only to see whether it could; `forget_probes` tells.

        Raises:
            TraceError: It depends on the value of a tensor, or on whether gradients are wanted.
        """
        if any(_reads(node, ("requires_grad",)) for node in self._scalars(proxy.node)):
            raise TraceError(f"the forward needs {question} of {proxy.node.name}, which depends on requires_grad")
        answer = QUESTIONS[question](self.value_of(proxy, question))
        noted = self._note_answer(proxy.node, question, answer)
        if noted is not None and asker is not None:
            self.probes.append((noted, asker, asker.f_lasti))
        return answer

    def forget_probes(self) -> None:
        """Forget what the call being recorded asked for: torch's C++ tries its arguments, then passes them on."""
        # test_a_decision_by_size_is_asked_again: a probe that stays would be a decision that the forward never made
        callers = {(frame, frame.f_lasti) for frame, _ in traceback.walk_stack(sys._getframe(1))}
        for noted, asker, place in self.probes:
            if (asker, place) in callers:
                self.asked.discard((noted.all_input_nodes[0], str(noted.args[1])))
                self.graph.erase_node(noted)
        self.probes = []

    def _note_answer(self, node: fx.Node, question: str, answer: Any) -> fx.Node | None:
        """Ask again at every call: not of what never changes, and not for a device, which moves with the model."""
        if (node, question) in self.asked or node not in self.varying:
            return None
        self.asked.add((node, question))
        values = self.run.values
        if any(_reads(one, _DEVICES) or isinstance(values.get(one), torch.device) for one in self._scalars(node)):
            return None
        with self._standing_aside():
            noted = self.create_node("call_function", guard, (node, question, answer, told(node), asking_line()), {})
        noted.meta[GUARDS] = self.names.path
        return noted

    def _scalars(self, node: fx.Node) -> Iterator[fx.Node]:
        """A node and what it is computed from, back to the tensors."""
        waiting, seen = [node], {node}
        while waiting:
            node = waiting.pop()
            yield node
            if not isinstance(self.run.values.get(node), Tensor):
                waiting += [one for one in node.all_input_nodes if one not in seen]
                seen.update(node.all_input_nodes)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of a size, a flag or the like."""
        return bool(self.ask(obj, "the truth"))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The items of a shape, a tuple or a tensor, each a proxy."""
        items: Any = obj
        count = self.ask(obj, "len()")
        if isinstance(self.known(obj), Tensor):
            items = self.create_proxy("call_method", "unbind", (obj, 0), {})  # what a tensor gives its items by
        return iter([items[i] for i in range(count)])

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """Record one operation and stand in for what it gives, unless that is None.

        Raises:
            TraceError: It differentiates, and has to find what it goes back through as the forward made it.
        """
        if args[1] in _DERIVATIVES and args[0].startswith("call_"):
            raise TraceError("its forward differentiates, which is kept as it is")
        proxy = self.record(*args, **kwargs)
        if self.known(proxy) is not None:
            return proxy
        if proxy.node.op == "call_method":  # of a dict: another one may have the key
            self._note_answer(proxy.node, "whether it is None", True)
        return None

    def record(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        """Record one operation and derive what it gives; one that fails on the example inputs stays without a value."""
        proxy = super().create_proxy(*args, **kwargs)
        if not self.aside:
            with self._standing_aside():
                self._derive(proxy.node)
        return proxy

    def _derive(self, node: fx.Node) -> None:
        """Note what a node gives, or why that is not known.

        Raises:
            TraceError: It is no call of a module, and puts an argument into other memory, as ``x.set_(y)`` does, or
                gives what a layer has returned another shape in place, as ``x.unsqueeze_(1)`` does.
        """
        given = _real([self.run.values.get(one) for one in node.all_input_nodes if node.op != "call_module"])
        places = [storage_of(tensor) for tensor in given]
        shapes = [(tensor.shape, tensor.stride()) for tensor in given]
        try:
            self.run.values[node] = self.run.run_node(node)
        except Exception as error:  # whatever the base's own code raises; told where the value is needed
            first = (self.unknown[one] for one in node.all_input_nodes if one in self.unknown)
            self.unknown[node] = next(first, error)
        if places != [storage_of(tensor) for tensor in given]:
            raise TraceError(f"the forward puts a tensor in the place of another by {target_name(node)}")
        for tensor, (shape, stride) in zip(given, shapes, strict=True):
            if (tensor.shape, tensor.stride()) != (shape, stride) and self._is_of_a_layer(tensor):
                raise TraceError(f"the forward gives a layer's output another shape in place, by {target_name(node)}")

    def _is_of_a_layer(self, tensor: Tensor) -> bool:
        """Whether a layer or a function of one has returned this very tensor."""
        made = (one for one in self.graph.nodes if one.op == "call_module" or one.target in FUNCTIONS)
        return any(self.run.values.get(node) is tensor for node in made)

    @contextmanager
    def _standing_aside(self) -> Iterator[None]:
        """While the base's own code runs for its shapes."""
        # as fast as ever: no proxies are met, and no mode has to see the sizes that are asked for
        asked, builtins.isinstance = builtins.isinstance, PLAIN_ISINSTANCE
        watched = isinstance(current_function_mode(), RecordFactories)
        self.aside = True
        try:
            with function_mode_popped() if watched else nullcontext():
                yield
        finally:
            self.aside = False
            builtins.isinstance = asked


_DERIVATIVES = (torch.autograd.grad, torch.autograd.backward, "backward")
"""What goes back through the operations of a forward."""

_DEVICES = ("device", "is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu", "get_device")


def _reads(node: fx.Node, names: tuple[str, ...]) -> bool:
    """Whether a node gets one of these attributes, or calls the method of that name."""
    name = node.args[1] if node.op == "call_function" and node.target is getattr else node.target
    return isinstance(name, str) and node.op != "placeholder" and name in names
