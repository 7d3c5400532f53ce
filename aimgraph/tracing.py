"""From a module to graphs: one for train and one for eval mode, or a single one where they agree."""

import builtins
import operator
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict
from torch.overrides import _get_current_function_mode, _pop_mode_temporarily
from torch.utils._pytree import tree_flatten

from aimgraph.attributes import kept_attributes, refuse_assigned, unused_randomness, watched_modes
from aimgraph.calls import names_in
from aimgraph.compiler.graph_text import told
from aimgraph.compiler.node_keys import CALL, DECIDES, OUTPUT_OF
from aimgraph.compiler.signature import LayerKind
from aimgraph.contexts import contexts_recorded, drop_empty_contexts
from aimgraph.copies import USUAL
from aimgraph.errors import TraceError
from aimgraph.fake.faker import Faker
from aimgraph.fake.operations import Operation, Recorder
from aimgraph.fake.run import FakeRun
from aimgraph.fake.tensors import quiet
from aimgraph.inputs.arguments import (
    NOT_GIVEN,
    Argument,
    Arguments,
    arguments_of,
    check_placeholder,
    placeholder_default,
)
from aimgraph.patches import (
    PLAIN_ISINSTANCE,
    RecordFactories,
    autograd_functions_refused,
    functions_on_proxies,
    nothing_hidden,
    parameters_as_proxies,
    posing,
    random_states_refused,
)
from aimgraph.proxies import UNKNOWN, LayerProxy
from aimgraph.reproducible import plain_attention
from aimgraph.runtime.call_names import WHOLE, CallNames, input_name
from aimgraph.runtime.guards import QUESTIONS, decided
from aimgraph.runtime.layers import FUNCTIONS
from aimgraph.runtime.recompute import checkpoints_entered
from aimgraph.runtime.regions import closed_contexts
from aimgraph.user_code import asking_line, place_of


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
        root = names.module
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
        self.leaves: dict[nn.Module, bool] = {}
        held = chain(root.named_parameters(), root.named_buffers())
        self.held = {id(tensor): (name, tensor) for name, tensor in held}

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
        if module not in self.leaves:
            self.leaves[module] = self._is_leaf(module, path)
        return self.leaves[module]

    def _is_leaf(self, module: nn.Module, path: str) -> bool:
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
            noted = self.create_node("call_function", decided, (node, question, answer, told(node), asking_line()), {})
        noted.meta[DECIDES] = self.names.path
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
        count = self.ask(obj, "len()")
        if isinstance(self.known(obj), Tensor):
            items = self.create_proxy("call_method", "unbind", (obj, 0), {})  # what a tensor gives its items by
        return iter([items[i] for i in range(count)])

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter or buffer as a proxy."""
        name = None if self.aside else self._name_of(attr_val)  # a proxy has none: what the forward has set before
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def _name_of(self, value: Any) -> str | None:
        """The name of a parameter or buffer."""
        name, tensor = self.held.get(id(value), (None, None))
        return name if tensor is value else None

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
        # as fast as ever: no proxies are met, and no mode has to see the sizes that are asked for
        asked, builtins.isinstance = builtins.isinstance, PLAIN_ISINSTANCE
        watched = isinstance(_get_current_function_mode(), RecordFactories)
        self.aside = True
        try:
            with _pop_mode_temporarily() if watched else nullcontext():
                yield
        finally:
            self.aside = False
            builtins.isinstance = asked

    def note_checkpoint(self) -> None:
        """The forward has asked for activation checkpointing."""
        self.checkpoints = self.checkpoints or not self.aside  # one inside a single call is kept

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record one operation; name it, if it is a convolution or linear function."""
        self.checkpoints |= torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        posing, builtins.isinstance = builtins.isinstance, PLAIN_ISINSTANCE  # torch.fx asks it of every argument
        try:
            node = super().create_node(*args, **kwargs)
        finally:
            builtins.isinstance = posing
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
        if PLAIN_ISINSTANCE(a, fx.Proxy):  # before anything asks for the type that it poses as
            return a.node
        if type(a) in USUAL:
            return a
        if (name := self._name_of(a)) is not None:
            return self.create_node("get_attr", name, (), {})
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
        if m in self.kinds and not args and input_name(m) in kwargs:  # whatever a subclass calls it
            args, kwargs = (kwargs[input_name(m)],), {key: kwargs[key] for key in kwargs if key != input_name(m)}
        with self.names.inside(m):
            try:
                result = super().call_module(m, forward, args, kwargs)
                refuse_assigned(m)
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


@dataclass(frozen=True)
class Traced:
    """What tracing a module gives.

    Attributes:
        graphs: ``both`` where train and eval graph agree, else ``train`` and ``eval``.
        moded: Paths of entered modules that looked at their `training` flag.
        notes: What the graphs do not keep.
        setters: Paths of entered modules that set attributes of their own.
        runs: Graph -> what each of its nodes gives on the example inputs.
        operations: Mode -> what the nodes of its graph do to tensors.
    """

    graphs: dict[str, fx.Graph]
    moded: tuple[str, ...]
    notes: tuple[str, ...]
    setters: tuple[str, ...]
    runs: dict[str, FakeRun]
    operations: dict[str, list[Operation]]


def trace(
    faker: Faker,
    kinds: dict[nn.Module, LayerKind],
    inputs: Arguments,
    callers: frozenset[nn.Module] = frozenset(),
    opaque: frozenset[str] = frozenset(),
    in_train: list[Operation] | None = None,
) -> Traced:
    """Trace a module in eval and in train mode; once, where nothing that is entered looks at its mode.

    Flags, attributes and all random states are as before afterwards, whatever the forward does.

    Args:
        faker: Of the module.
        kinds: The kind of each of its convolutions and linear layers.
        inputs: Example inputs. Sizes derived from them decide control flow; arguments of
            `forward` that they leave at their defaults become constants, and so do None, flags
            and strings that they give.
        callers: Modules that call a convolution or linear function themselves.
        opaque: Paths of modules that are kept as one call whatever is in them; `WHOLE` for the base itself.
        in_train: The operations of the forward in train mode; without them it is traced in both.

    Raises:
        ExampleInputError: The inputs don't fit the forward's signature.
        TraceError: `forward` depends on values that only exist at run time, or draws from Python's or
            numpy's random numbers.
    """
    root = faker.root
    flags = {module: module.training for module in root.modules()}
    merged = _kept_state(root) if _notices_mode(root) else nullcontext()
    tracing = _Tracing(faker, kinds, arguments_of(root, inputs), callers, opaque)
    try:
        with merged:
            graphs = {"eval": tracing.trace("eval")}
            same = not tracing.moded and not _notices_mode(root) and in_train is not None
            if not same or tracing.replay("train", graphs["eval"]) != in_train or tracing.differ("train", "eval"):
                graphs = {"train": tracing.trace("train"), **graphs}
    finally:
        for module, flag in flags.items():
            module.training = flag
    paths = {module: path for path, module in root.named_modules()}
    runs, moded = tracing.runs, tracing.moded
    if "train" not in graphs or _source(graphs["train"]) == _source(graphs["eval"]):
        graphs, runs, moded = {"both": graphs["eval"]}, {"both": runs["eval"]}, {}
    moded_paths = tuple(paths[module] for module in moded if module in paths)
    notes, setters = (tuple(dict.fromkeys(found)) for found in (tracing.notes, tracing.setters))
    return Traced(graphs, moded_paths, notes, setters, runs, tracing.operations)


class _Tracing:
    """Traces one module on one set of inputs, mode after mode.

    Args:
        faker: As for `trace`.
        kinds: As for `trace`.
        arguments: Of the module's forward.
        callers: As for `trace`.
        opaque: As for `trace`.
    """

    def __init__(
        self,
        faker: Faker,
        kinds: dict[nn.Module, LayerKind],
        arguments: list[Argument],
        callers: frozenset[nn.Module],
        opaque: frozenset[str],
    ) -> None:
        self.faker, self.kinds, self.arguments, self.callers, self.opaque = faker, kinds, arguments, callers, opaque
        self.notes: list[str] = []
        self.setters: list[str] = []
        self.moded: dict[nn.Module, None] = {}
        self.runs: dict[str, FakeRun] = {}
        self.operations: dict[str, list[Operation]] = {}

    def trace(self, mode: str) -> fx.Graph:
        """The graph of a mode."""
        root = self.faker.root
        root.train(mode == "train")
        run, recorder = self._started(mode)
        names = names_in(root, self.kinds)
        tracer = LayerTracer(self.kinds, self.callers, self.opaque, run, recorder, names, self.arguments)
        with (
            self.faker.outside.kept(),
            run.adopted(self.faker.copy(train=mode == "train")),
            kept_attributes(root, self.notes, self.setters),
            unused_randomness(root),
            watched_modes(self.moded, tracer),
        ):
            return _trace_once(root, tracer, self.notes)

    def replay(self, mode: str, graph: fx.Graph) -> list[Operation] | None:
        """What the nodes of a graph do in a mode; None if they don't run in it, which tracing in that mode explains."""
        run, recorder = self._started(mode)
        try:
            with quiet(), self.faker.outside.kept():
                run.run(graph, recorder)
        except Exception:  # whatever the base's own code raises
            return None
        return recorder.operations

    def differ(self, mode: str, other: str) -> bool:
        """Whether anything that is no tensor, or the structure of what a node gives, differs between two modes."""
        one, two = self.runs[mode].values, self.runs[other].values
        return any(_described(one[node]) != _described(two[node]) for node in one if node in two)

    def _started(self, mode: str) -> tuple[FakeRun, Recorder]:
        values = {argument.name: argument.passed for argument in self.arguments}
        run = self.runs[mode] = FakeRun(self.faker.root, values, self.faker, train=mode == "train")
        recorder = Recorder(self.faker.tensors, run.inputs)
        self.operations[mode] = recorder.operations
        return run, recorder


def _notices_mode(root: nn.Module) -> bool:
    """Whether a module does more than keep a flag when its mode is set."""
    plain = nn.Module.train, nn.Module.eval
    return any(
        (type(module).train, type(module).eval) != plain or not {"train", "eval"}.isdisjoint(vars(module))
        for module in root.modules()
    )


@contextmanager
def _kept_state(root: nn.Module) -> Iterator[None]:
    """Put parameters, buffers and plain attributes back: ``train()`` may merge weights, and take them apart again."""
    tensors = [(tensor, tensor.detach().clone()) for tensor in chain(root.parameters(), root.buffers())]
    plain = [(m, {key: value for key, value in vars(m).items() if type(value) in USUAL}) for m in root.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, before in tensors:
                if not tensor.is_meta and not torch.equal(tensor, before):
                    tensor.copy_(before)
        for module, attributes in plain:
            vars(module).update(attributes)


def _described(value: Any) -> Any:
    """What a forward can decide by without looking into tensors."""
    leaves, structure = tree_flatten(value)
    return structure, [(type(leaf), *_seen_of(leaf)) for leaf in leaves]


def _seen_of(leaf: Any) -> tuple[Any, ...]:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype
    return (leaf if type(leaf) in USUAL or isinstance(leaf, torch.dtype | torch.device) else id(leaf),)


def _trace_once(root: nn.Module, tracer: LayerTracer, notes: list[str]) -> fx.Graph:
    if WHOLE in tracer.opaque:
        return _whole_graph(tracer)
    try:
        with (
            quiet(),
            closed_contexts(),
            RecordFactories(tracer),
            functions_on_proxies(tracer),
            random_states_refused(tracer),
            parameters_as_proxies(tracer),
            plain_attention(),
            nothing_hidden(),
            contexts_recorded(tracer),
            autograd_functions_refused(),
            checkpoints_entered(tracer.note_checkpoint),
            posing(),
        ):
            graph = tracer.trace(root)
            refuse_assigned(root)
        drop_empty_contexts(graph)
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


def _source(graph: fx.Graph) -> str:
    return str(graph.python_code("self").src)
