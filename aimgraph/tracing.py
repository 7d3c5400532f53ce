"""From a module to graphs: one for train and one for eval mode, or a single one where they agree."""

import builtins
import copy
import math
import operator
import os
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace
from torch.fx.immutable_collections import immutable_dict
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from aimgraph.arguments import NOT_GIVEN, Argument, Arguments, arguments_of, check_placeholder, placeholder_default
from aimgraph.calls import names_in, plain_attention
from aimgraph.errors import TraceError
from aimgraph.fakes import Faker, FakeRun, quiet
from aimgraph.layers import LayerKind
from aimgraph.operations import Operation, Recorder
from aimgraph.randomness import kept_randomness
from aimgraph.runtime.checkpoints import checkpoints_entered
from aimgraph.runtime.contexts import CONTEXTS, closed_contexts, enter_context, leave_context
from aimgraph.runtime.decisions import QUESTIONS, decided
from aimgraph.runtime.inplace import INPLACE
from aimgraph.runtime.layers import FUNCTIONS
from aimgraph.runtime.watch import COMPOSITE, CallNames, opened

OUTPUT_OF = "output_of"
"""Key in ``node.meta``: paths of the modules whose result the node is."""

CALL = "aim_call"
"""Key in ``node.meta``: name of a direct call of a convolution or linear function."""


UNKNOWN = object()
"""In place of a value that could not be derived."""


DECIDES = "aim_decides"
"""Key in ``node.meta``: path of the innermost module whose forward asked what the node asks again."""


class LayerProxy(fx.Proxy):
    """A proxy that knows what its node gives on the example inputs.

    Sizes stay symbolic in the graph, while ``bool``, ``len``, ``int``, iteration and membership answer
    from that value; for the value of a tensor they refuse, because it only exists at run time. On it,
    ``x += y`` and its like are recorded as what they are: in place.
    """

    tracer: "LayerTracer"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__array") or name in ("__cuda_array_interface__", "__dlpack__"):
            raise AttributeError(f"a proxy has no {name}: numpy goes by its items and its value instead")
        if name in ("_is_param", "_is_buffer"):  # how torch tells an nn.Parameter, an nn.Buffer
            return getattr(self.tracer.known(self), name, False)
        if not self.tracer.has(self, name):
            raise AttributeError(f"{self.node.name} has no attribute {name!r}")
        value = self.tracer.known(self)
        if not isinstance(value, Tensor) and value is not UNKNOWN and getattr(value, name) is None:
            return None
        return LayerAttribute(self, name)

    def __len__(self) -> int:
        length: int = self.tracer.ask(self, "len()")
        return length

    def __int__(self) -> int:
        number: int = self.tracer.ask(self, "int()")
        return number

    def __index__(self) -> int:
        number: int = self.tracer.ask(self, "an index", sys._getframe(1))
        return number

    def __float__(self) -> float:
        number: float = self.tracer.ask(self, "float()")
        return number

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __hash__(self) -> int:
        """That of the value for names, dtypes and devices, which sets and dicts have; sizes would meet in caches."""
        value = self.tracer.known(self)
        return hash(value) if isinstance(value, str | torch.dtype | torch.device) else object.__hash__(self)

    def __contains__(self, item: Any) -> bool:
        self.tracer.value_of(self, "in")  # refuses that of a tensor
        return bool(self.tracer.create_proxy("call_function", operator.contains, (self, item), {}))

    @classmethod
    def __torch_function__(cls, orig_method: Any, types: Any, args: Any = None, kwargs: Any = None) -> Any:
        """Record a call of one of torch's functions; one that calls linear functions is entered."""
        for proxy in {leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, LayerProxy)}:
            proxy.tracer.forget_probes()
        if orig_method in COMPOSITE:
            return opened(orig_method)(*(args or ()), **(kwargs or {}))
        return super().__torch_function__(orig_method, types, args, kwargs)


class LayerAttribute(LayerProxy):
    """An attribute of a proxy; its node is made when it is used, because most are method calls."""

    def __init__(self, root: fx.Proxy, attr: str) -> None:
        self.root, self.attr = root, attr
        self.tracer = root.tracer  # type: ignore[assignment]
        self._node: fx.Node | None = None

    @property
    def node(self) -> fx.Node:  # type: ignore[override]
        """The node that gets the attribute."""
        if self._node is None:
            self._node = self.tracer.record("call_function", getattr, (self.root, self.attr), {}).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A method call."""
        return self.tracer.create_proxy("call_method", self.attr, (self.root, *args), kwargs)


def _record_inplace(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _function in INPLACE:
    setattr(LayerProxy, f"__{_function.__name__}__", _record_inplace(_function))


class LayerTracer(fx.Tracer):
    """Records convolutions and linear layers as calls, and enters only what contains or calls one.

    A module without such a layer below it (norms, activations, drop path) stays one call, so what
    it does with its own `training` flag is not baked into the graph.

    Args:
        kinds: The kind of each convolution and linear layer.
        callers: Modules that call a convolution or linear function themselves.
        opaque: Paths of modules that are kept as one call whatever is in them.
        run: Derives what each node gives on the example inputs.
        recorder: Lists what the nodes do to tensors.
        names: Names such calls.
        arguments: Of the root's forward.
    """

    proxy_buffer_attributes = True  # a buffer is read when the graph runs, not when it is traced

    def __init__(
        self,
        kinds: dict[nn.Module, LayerKind],
        callers: frozenset[nn.Module],
        opaque: frozenset[str],
        run: FakeRun,
        recorder: Recorder,
        names: CallNames,
        arguments: list[Argument],
    ) -> None:
        super().__init__()
        self.arguments = arguments
        self.kinds = kinds
        self.callers = callers
        self.opaque = opaque
        self.failed: str | None = None
        self.run = run
        self.recorder = recorder
        self.names = names
        self.aside = False
        self.unknown: dict[fx.Node, Exception] = {}
        self.checkpoints = False
        self.asked: set[tuple[fx.Node, str]] = set()
        self.varying: set[fx.Node] = set()  # nodes on which an input of the model has influence
        self.probes: list[tuple[fx.Node, types.FrameType, int]] = []

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """An input per argument of the example, passed as the example passes it.

        torch.fx goes by the code of the forward, which of a decorated one is not the code that runs first.
        """
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for index, argument in enumerate(self.arguments):
            default = placeholder_default(self.arguments, index)
            proxy = self.record("placeholder", argument.name, default, {})
            check_placeholder(self.graph, proxy.node, argument)
            value = argument.value if argument.constant else proxy
            if argument.given and argument.keyword:
                kwargs[argument.keyword] = value
            elif argument.given:
                args.append(value)
        return (lambda root: root_fn(root, *args, **kwargs)), [self.root]

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        """Whether the graph calls `module` instead of entering it."""
        if path in self.opaque:
            return True
        if module in self.kinds:
            return not self.kinds[module].enter
        return not any(child in self.kinds or child in self.callers for child in module.modules())

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The stand-in for what `node` gives."""
        return LayerProxy(node, self)

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
        callers = set()
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None:
            callers.add((frame, frame.f_lasti))
            frame = frame.f_back
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
        if any(_reads(scalar, _DEVICES) or _is_device(self.run.values.get(scalar)) for scalar in self._scalars(node)):
            return None
        with self._standing_aside():
            noted = self.create_node("call_function", decided, (node, question, answer, _told(node), _asker()), {})
        module = self.names.module
        noted.meta[DECIDES] = "" if module is None else self.names.paths.get(module, "")
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
        truth: bool = self.ask(obj, "the truth")
        return truth

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The items of a shape, a tuple or a tensor, each a proxy."""
        items: Any = obj
        return iter([items[i] for i in range(self.ask(obj, "len()"))])

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter or buffer as a proxy."""
        if self.aside or isinstance(attr_val, fx.Proxy):  # a proxy: what the forward has set before
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """Record one operation and stand in for what it gives, unless that is None."""
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
                try:
                    self.run.values[proxy.node] = self.run.run_node(proxy.node, self.recorder)
                except Exception as error:  # whatever the base's own code raises; told where the value is needed
                    first = (self.unknown[node] for node in proxy.node.all_input_nodes if node in self.unknown)
                    self.unknown[proxy.node] = next(first, error)
        return proxy

    @contextmanager
    def _standing_aside(self) -> Iterator[None]:
        """While the base's own code runs for its shapes."""
        asked, builtins.isinstance = builtins.isinstance, _isinstance  # as fast as ever: no proxies are met
        self.aside = True
        try:
            yield
        finally:
            self.aside = False
            builtins.isinstance = asked

    def note_checkpoint(self) -> None:
        """The forward has asked for activation checkpointing."""
        self.checkpoints = True

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record one operation; name it, if it is a convolution or linear function."""
        self.checkpoints |= torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        node = super().create_node(*args, **kwargs)
        if node.op == "placeholder" or any(one in self.varying for one in node.all_input_nodes):
            self.varying.add(node)
        if node.op == "get_attr" and not self.aside:
            self._note_constant(node)
        if node.op == "call_function" and node.target in FUNCTIONS:
            node.meta[CALL] = self.names.name(node.target)
        return node

    def _note_constant(self, node: fx.Node) -> None:
        """Know a tensor that is neither parameter nor buffer: torch.fx makes it an attribute of the root."""
        with self._standing_aside():
            value = operator.attrgetter(str(node.target))(self.root)
            if isinstance(value, Tensor):
                self.run.values[node] = self.run.mode.from_tensor(value)

    def create_arg(self, a: Any) -> Any:
        """Keep subclasses of dict (an `OrderedDict` of outputs) as what they are."""
        if _isinstance(a, fx.Proxy):  # before anything asks for the type that it poses as
            return a.node
        if isinstance(a, dict) and any(isinstance(key, fx.Proxy) for key in a):
            keys = [self.ask(key, "the value") if isinstance(key, LayerProxy) else key for key in a]
            a = type(a)(zip(keys, a.values(), strict=True))
        if isinstance(a, dict) and type(a) is not dict and not isinstance(a, immutable_dict):
            items = {key: self.create_arg(value) for key, value in a.items()}
            if hasattr(type(a), "__dataclass_fields__"):
                return self.create_node("call_function", type(a), (), items)
            return self.create_node("call_function", type(a), (items,), {})
        return super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Trace a call of `m` and note on the resulting node whose output it is."""
        if self.aside:
            return forward(*args, **kwargs)
        if m not in self.names.paths and not any(m.parameters()) and not any(m.buffers()):
            return forward(*args, **kwargs)  # a module of somebody else's, an activation: no node can name it
        with self.names.inside(m):
            try:
                result = super().call_module(m, forward, args, kwargs)
                _refuse_assigned(m)
            except Exception:
                if self.failed is None:
                    self.failed = self.path_of_module(m)
                raise
        if isinstance(result, fx.Proxy):
            result.node.meta.setdefault(OUTPUT_OF, []).append(self.path_of_module(m))
        return result


_DEVICES = ("device", "is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu", "get_device")


def _reads(node: fx.Node, names: tuple[str, ...]) -> bool:
    """Whether a node gets one of these attributes, or calls the method of that name."""
    name = node.args[1] if node.op == "call_function" and node.target is getattr else node.target
    return isinstance(name, str) and node.op != "placeholder" and name in names


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device)


def _told(node: fx.Node) -> str:
    """What a node computes, for a message."""
    operands = ", ".join(str(operand) for operand in node.args)
    return f"{target_name(node)}({operands})" if node.op != "placeholder" else str(node.target)


def target_name(node: fx.Node) -> str:
    """Name of the function, method or module that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _asker() -> str:
    """The innermost line of the user's code that runs."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and not _is_users(frame.f_code.co_filename):
        frame = frame.f_back
    if frame is None:
        return "a place that can't be told"
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"


def _is_users(filename: str) -> bool:
    return "/torch/" not in filename and not filename.startswith((_OURS, "<"))


def _refuse_assigned(module: nn.Module) -> None:
    """A graph would compute what a forward assigns to a buffer, and not assign it."""
    for name, value in {**module._buffers, **module._parameters}.items():
        if isinstance(value, fx.Proxy):
            raise TraceError(f"its forward assigns its buffer {name!r}, which a graph does not keep")


class _RecordFactories(TorchFunctionMode):
    """Makes tensors out of nothing part of the graph: ``torch.rand(3)`` is drawn at every call."""

    def __init__(self, tracer: LayerTracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FROM_DATA and any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
            return self.tracer.create_proxy("call_function", func, args, kwargs)
        result = func(*args, **kwargs)
        if self.tracer.aside:
            return result
        given = tree_leaves((args, kwargs))
        if type(result) is not Tensor or any(isinstance(leaf, Tensor | fx.Proxy | torch.Generator) for leaf in given):
            return result
        return self.tracer.create_proxy("call_function", func, args, kwargs)


_FROM_DATA = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)
"""Factories that look into what they are given, and so would not take a proxy."""


@contextmanager
def _nothing_hidden() -> Iterator[None]:
    """Look into functions that were marked with ``torch.fx.wrap``: some of them call layers."""
    functions, methods = _symbolic_trace._wrapped_fns_to_patch, _symbolic_trace._wrapped_methods_to_patch
    kept = dict(functions), list(methods)
    functions.clear()
    methods.clear()
    try:
        yield
    finally:
        functions.update(kept[0])
        methods[:] = kept[1]


@contextmanager
def _autograd_functions_refused() -> Iterator[None]:
    """A graph would keep the forward of a `torch.autograd.Function`, and lose its backward."""
    original = vars(torch.autograd.Function)["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
            raise TraceError(f"it calls {cls.__name__}, whose own backward a graph does not keep")
        return original.__func__(cls, *args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]


_isinstance = isinstance


@contextmanager
def _posing() -> Iterator[None]:
    """Let ``isinstance(x, Tensor)`` decide on a proxy what it decides on the value.

    In Python code only: torch's own C++ asks the same question, and takes what says yes for a tensor in memory.
    """

    def asked(value: Any, kinds: Any) -> bool:
        if _isinstance(value, kinds):
            return True
        return _isinstance(value, LayerProxy) and _isinstance(value.tracer.known(value), kinds)

    builtins.isinstance = asked
    try:
        yield
    finally:
        builtins.isinstance = _isinstance


@contextmanager
def _functions_on_proxies(tracer: LayerTracer) -> Iterator[None]:
    """Let functions take proxies that would ask for their values, or look for them in tensors and tuples only."""

    def recording(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            sizes = [value for value in args if isinstance(value, fx.Proxy)]
            if sizes and not tracer.aside and not any(isinstance(tracer.known(size), Tensor) for size in sizes):
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return call

    def checking(function: Callable[..., Any]) -> Callable[..., Any]:
        def check(error: type[Exception], condition: Any, message: Any) -> None:
            function(error, bool(condition) if isinstance(condition, fx.Proxy) else condition, message)

        return check

    def asking(function: Callable[..., Any]) -> Callable[..., Any]:
        def ask() -> Any:
            if not tracer.aside and _is_users(sys._getframe(1).f_code.co_filename):
                raise TraceError("the forward asks whether gradients are recorded, which is known at a call only")
            return function()

        return ask

    with _patched(
        (torch, "_check_with", checking),
        (torch, "is_grad_enabled", asking),
        *((torch, name, recording) for name in ("empty", "ones", "rand", "randn", "zeros")),
        *((torch, name, recording) for name in ("finfo", "iinfo", "promote_types")),
        *((math, name, recording) for name in ("ceil", "exp", "floor", "log", "log2", "pow", "sqrt", "trunc")),
    ):
        yield


@contextmanager
def _patched(*patches: tuple[Any, str, Callable[[Any], Any]]) -> Iterator[None]:
    """Replace functions of modules by what is made of them."""
    originals = [getattr(module, name) for module, name, _ in patches]
    try:
        for (module, name, patch), function in zip(patches, originals, strict=True):
            setattr(module, name, patch(function))
        yield
    finally:
        for (module, name, _), function in zip(patches, originals, strict=True):
            setattr(module, name, function)


@contextmanager
def _contexts_recorded(tracer: LayerTracer) -> Iterator[None]:
    """Make entering and leaving a grad mode or autocast nodes of the graph."""
    recorder = _ContextRecorder(tracer)
    patches: list[tuple[Any, str, Any]] = [
        (torch.set_grad_enabled, "__init__", recorder.set),
        (torch.set_grad_enabled, "__exit__", recorder.leave),
    ]
    for kind in (torch.no_grad, torch.enable_grad, torch.inference_mode, torch.autocast):
        patches += [(kind, "__init__", recorder.make), (kind, "__enter__", recorder.enter)]
        patches += [(kind, "__exit__", recorder.leave)]
    originals = [(kind, name, vars(kind).get(name)) for kind, name, _ in patches]
    try:
        for kind, name, patch in patches:
            setattr(kind, name, patch(getattr(kind, name)))
        yield
    finally:
        for kind, name, original in originals:
            if original is None:
                delattr(kind, name)
            else:
                setattr(kind, name, original)


class _ContextRecorder:
    """Wraps the methods of torch's context managers; what these do among themselves is not recorded."""

    def __init__(self, tracer: LayerTracer) -> None:
        self.tracer = tracer
        self.busy = False
        self.given: dict[int, tuple[Any, Any]] = {}
        self.entered: dict[int, list[fx.Proxy]] = {}
        self.alive: list[Any] = []

    def make(self, original: Any) -> Any:
        """Remember the arguments; torch's own constructor gets values for proxies."""

        def init(context: Any, *args: Any, **kwargs: Any) -> None:
            self.alive.append(context)
            self.given[id(context)] = (args, kwargs)
            concrete: Any = fx.node.map_aggregate((args, kwargs), self._concrete)
            with self._quietly():
                original(context, *concrete[0], **concrete[1])

        return init

    def set(self, original: Any) -> Any:
        """``torch.set_grad_enabled(flag)`` works from its construction on."""

        def init(context: Any, *args: Any, **kwargs: Any) -> None:
            record = self._records()
            original(context, *args, **kwargs)
            if record:
                self.alive.append(context)
                self._enter(context, "set_grad_enabled", args, kwargs)

        return init

    def enter(self, original: Any) -> Any:
        """A node, then torch's own ``__enter__``."""

        def call(context: Any) -> Any:
            if self._records():
                self._enter(context, type(context).__name__, *self.given.get(id(context), _made_with(context)))
            with self._quietly():
                return original(context)

        return call

    def leave(self, original: Any) -> Any:
        """Torch's own ``__exit__``, then a node: what was entered last is left first."""

        def call(context: Any, *error: Any) -> Any:
            with self._quietly():
                result = original(context, *error)
            if self._records() and self.entered.get(id(context)):
                token = self.entered[id(context)].pop()
                self.tracer.create_proxy("call_function", leave_context, (token,), {})
            return result

        return call

    def _enter(self, context: Any, name: str, args: Any, kwargs: Any) -> None:
        kept = next((key for key, kind in CONTEXTS.items() if isinstance(context, kind)), name)  # type: ignore[arg-type]
        token = self.tracer.create_proxy("call_function", enter_context, (kept, *args), kwargs)
        self.entered.setdefault(id(context), []).append(token)

    def _records(self) -> bool:
        return not self.busy and not self.tracer.aside

    def _concrete(self, value: Any) -> Any:
        return self.tracer.value_of(value, "the value") if isinstance(value, LayerProxy) else value

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        before, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = before


def _made_with(context: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a context that was made before the forward, as a decorator or an attribute."""
    if isinstance(context, torch.autocast):
        named = {"dtype": context.fast_dtype, "enabled": context._enabled, "cache_enabled": context._cache_enabled}
        return (context.device,), named
    return ((context.mode,), {}) if isinstance(context, torch.inference_mode | torch.set_grad_enabled) else ((), {})


def _drop_empty_contexts(graph: fx.Graph) -> None:
    """Remove contexts that were left as soon as they were entered."""
    for node in list(graph.nodes):
        entered = node.args[0] if node.target is leave_context else None
        if isinstance(entered, fx.Node) and node.prev is entered:
            graph.erase_node(node)
            graph.erase_node(entered)


@dataclass(frozen=True)
class Traced:
    """What tracing a module gives.

    Attributes:
        graphs: ``both`` where train and eval graph agree, else ``train`` and ``eval``.
        moded: Paths of entered modules that looked at their `training` flag.
        notes: What the graphs do not keep.
        runs: Graph -> what each of its nodes gives on the example inputs.
        operations: Mode -> what the nodes of its graph do to tensors.
    """

    graphs: dict[str, fx.Graph]
    moded: tuple[str, ...]
    notes: tuple[str, ...]
    runs: dict[str, FakeRun]
    operations: dict[str, list[Operation]]


def trace(
    faker: Faker,
    kinds: dict[nn.Module, LayerKind],
    inputs: Arguments,
    callers: frozenset[nn.Module] = frozenset(),
    opaque: frozenset[str] = frozenset(),
) -> Traced:
    """Trace a module in train and in eval mode.

    Flags, attributes and all random states are as before afterwards, whatever the forward does.

    Args:
        faker: Of the module.
        kinds: The kind of each of its convolutions and linear layers.
        inputs: Example inputs. Sizes derived from them decide control flow; arguments of
            `forward` that they leave at their defaults become constants, and so do None, flags
            and strings that they give.
        callers: Modules that call a convolution or linear function themselves.
        opaque: Paths of modules that are kept as one call whatever is in them; `WHOLE` for the base itself.

    Raises:
        ExampleInputError: The inputs don't fit the forward's signature.
        TraceError: `forward` depends on values that only exist at run time, or draws from Python's or
            numpy's random numbers.
    """
    root = faker.root
    arguments = arguments_of(root, inputs)
    values = {argument.name: argument.passed for argument in arguments}
    flags = {module: module.training for module in root.modules()}
    graphs: dict[str, fx.Graph] = {}
    notes: list[str] = []
    moded: dict[nn.Module, None] = {}
    runs, operations = {}, {}
    try:
        for mode in ("train", "eval"):
            root.train(mode == "train")
            runs[mode], fake = FakeRun(root, values, faker, train=mode == "train"), faker.copy(train=mode == "train")
            recorder = Recorder(faker.tensors, runs[mode].inputs)
            operations[mode] = recorder.operations
            with (
                runs[mode].adopted(fake),
                _kept_attributes(root, notes),
                _unused_randomness(root),
                _watched_modes(moded),
            ):
                tracer = LayerTracer(kinds, callers, opaque, runs[mode], recorder, names_in(root, kinds), arguments)
                graphs[mode] = _trace_once(root, tracer, notes)
    finally:
        for module, flag in flags.items():
            module.training = flag
    paths = {module: path for path, module in root.named_modules()}
    if _source(graphs["train"]) == _source(graphs["eval"]):
        graphs, runs, moded = {"both": graphs["eval"]}, {"both": runs["eval"]}, {}
    moded_paths = tuple(paths[module] for module in moded if module in paths)
    return Traced(graphs, moded_paths, tuple(dict.fromkeys(notes)), runs, operations)


def _trace_once(root: nn.Module, tracer: LayerTracer, notes: list[str]) -> fx.Graph:
    if WHOLE in tracer.opaque:
        return _whole_graph(tracer)
    try:
        with (
            quiet(),
            closed_contexts(),
            _RecordFactories(tracer),
            _functions_on_proxies(tracer),
            plain_attention(),
            _nothing_hidden(),
            _contexts_recorded(tracer),
            _autograd_functions_refused(),
            checkpoints_entered(tracer.note_checkpoint),
            _posing(),
        ):
            graph = tracer.trace(root)
            _refuse_assigned(root)
        _drop_empty_contexts(graph)
    except Exception as error:
        advice = (
            "its forward depends on values that only exist at run time; move that code into a submodule without conv "
            "or linear layers, which is kept as one call"
        )
        raise TraceError(
            f"{type(root).__name__} can't be traced by torch.fx: {error}\n{place_of(error).strip()}: "
            + ("" if isinstance(error, TraceError) else advice),
            where=tracer.failed or "",
        ) from error
    if tracer.checkpoints:
        notes.append(
            "activation checkpointing inside the forward is not kept: values are the same, memory is not saved"
        )
    return graph


WHOLE = "aim._whole"
"""Path of the stand-in for the base itself, where its own forward is the one that can't be traced."""


def _whole_graph(tracer: LayerTracer) -> fx.Graph:
    """Instead of a trace, one call of the stand-in with the arguments of the root's forward."""
    graph = fx.Graph()
    args: list[fx.Node] = []
    kwargs: dict[str, Any] = {}
    for index, argument in enumerate(tracer.arguments):
        node = graph.create_node("placeholder", argument.name, placeholder_default(tracer.arguments, index))
        if NOT_GIVEN in node.args:
            check_placeholder(graph, node, argument)
            if argument.constant:  # its default has no source: the base has it
                continue
        if argument.keyword:
            kwargs[argument.keyword] = node
        else:
            args.append(node)
    graph.output(graph.create_node("call_module", WHOLE, tuple(args), kwargs))
    with quiet(), tracer.recorder:
        tracer.run.run(graph)
    return graph


@contextmanager
def _kept_attributes(root: nn.Module, notes: list[str]) -> Iterator[None]:
    """Put back plain attributes that a forward sets: they hold proxies now. torch.fx's own constants stay."""
    before = {
        module: {key: (value, _content(value)) for key, value in vars(module).items()} for module in root.modules()
    }
    tensors: list[tuple[nn.Module, dict[str, Any], dict[str, Any]]] = [
        (m, held, dict(held))
        for m in root.modules()
        if not isinstance(m, torch.jit.ScriptModule)  # no Python runs in it
        for held in (m._parameters, m._buffers)
    ]
    try:
        yield
    finally:
        paths = {module: path for path, module in root.named_modules()}
        for module, held, kept in tensors:
            changed = [key for key in {**held, **kept} if held.get(key) is not kept.get(key)]
            held.clear()
            held.update(kept)
            notes += [_not_kept(paths[module], key) for key in changed]
        for path, module in root.named_modules():
            old, now = before.get(module, {}), vars(module)
            for key in [key for key, value in now.items() if key not in old or _changed(value, *old[key])]:
                if key.startswith("_tensor_constant") or key in ("training", "_parameters", "_buffers", "_modules"):
                    continue
                notes.append(_not_kept(path, key))
                if key in old:
                    now[key] = _restored(*old[key])
                else:
                    del now[key]


def _not_kept(path: str, key: str) -> str:
    return f"the forward sets {'.'.join(filter(None, (path, key)))}, which the graph does not keep"


_CONTAINERS = (list, dict, set, deque)


def _content(value: Any) -> Any:
    """What a container holds, to be put back; None for anything else."""
    return copy.copy(value) if isinstance(value, _CONTAINERS) else None


def _changed(now: Any, old: Any, content: Any) -> bool:
    if now is not old:
        return True
    if content is None:
        return False
    pairs = zip(_items(now), _items(content), strict=False)
    return len(now) != len(content) or any(a is not b for a, b in pairs)


def _items(container: Any) -> list[Any]:
    return [*container.keys(), *container.values()] if isinstance(container, dict) else list(container)


def _restored(value: Any, content: Any) -> Any:
    """The container itself, holding what it held."""
    if content is not None:
        value.clear()
        (value.extend if isinstance(value, list | deque) else value.update)(content)
    return value


@contextmanager
def _unused_randomness(root: nn.Module) -> Iterator[None]:
    """Put every random state back; refuse a forward that drew from one that no graph can show."""
    with kept_randomness() as drawn:
        yield
    if drawn:
        raise TraceError(
            f"{type(root).__name__} can't be traced: its forward draws from {drawn[0]}, whose numbers would become "
            "constants; use torch.rand, or move that code into a submodule without conv or linear layers"
        )


@contextmanager
def _watched_modes(seen: dict[nn.Module, None]) -> Iterator[None]:
    """Note which modules look at their own `training` flag."""

    def get(module: nn.Module) -> bool:
        seen[module] = None
        return bool(vars(module)["training"])

    def put(module: nn.Module, flag: bool) -> None:
        vars(module)["training"] = flag

    nn.Module.training = property(get, put)  # type: ignore[assignment]
    try:
        yield
    finally:
        del nn.Module.training


def place_of(error: BaseException) -> str:
    """The innermost line of the user's code in `error`'s traceback; empty if there is none."""
    where = ""
    trace_ = error.__traceback__
    while trace_ is not None:
        code = trace_.tb_frame.f_code
        if _is_users(code.co_filename):
            where = f" at {code.co_filename}:{trace_.tb_lineno} in {code.co_name}"
        trace_ = trace_.tb_next
    return where


_OURS = os.path.dirname(__file__) + os.sep


def _source(graph: fx.Graph) -> str:
    return str(graph.python_code("self").src)


def module_path(node: fx.Node) -> str:
    """Path of the innermost module whose forward made `node`; "" for the root's own."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    return str(entries[-1][0]) if entries else ""
