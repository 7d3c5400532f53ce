"""The tracer: layers are calls, and only what contains or calls one is entered."""

import builtins
import operator
from itertools import chain
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict

from aimgraph.compiler.node_keys import CALL, OUTPUT_OF
from aimgraph.compiler.signature import Classified
from aimgraph.copies import USUAL
from aimgraph.fake.run import FakeRun
from aimgraph.inputs.arguments import Argument
from aimgraph.runtime.call_names import CallNames, input_name
from aimgraph.runtime.layer_kinds import FUNCTIONS
from aimgraph.tracing.placeholders import check_placeholder, placeholder_default
from aimgraph.tracing.proxies import LayerProxy
from aimgraph.tracing.side_effects import refuse_assigned
from aimgraph.tracing.values import PLAIN_ISINSTANCE, ValueTracer


class LayerTracer(ValueTracer):
    """Records convolutions and linear layers as calls, and enters only what contains or calls one.

    A module without such a layer below it (norms, activations, drop path) stays one call, so what
    it does with its own `training` flag is not baked into the graph.

    Args:
        kinds: How each convolution and linear layer can read.
        callers: Modules that call a convolution or linear function themselves.
        opaque: Paths of modules that are kept as one call whatever is in them.
        run: Derives what each node gives on the example inputs.
        names: Names such calls.
        arguments: Of the root's forward.
    """

    proxy_buffer_attributes = True  # a buffer is read when the graph runs, not when it is traced

    def __init__(
        self,
        kinds: dict[nn.Module, Classified],
        callers: frozenset[nn.Module],
        opaque: frozenset[str],
        run: FakeRun,
        names: CallNames,
        arguments: list[Argument],
    ) -> None:
        super().__init__(run, names)
        root = names.module
        self.arguments = arguments
        self.kinds = kinds
        self.callers = callers
        self.opaque = opaque
        self.failed: str | None = None
        self.checkpoints = False
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
        if path in self.opaque:
            return True
        if module in self.kinds:
            return not self.kinds[module].enter
        return not any(child in self.kinds or child in self.callers for child in module.modules())

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The stand-in for what `node` gives."""
        return LayerProxy(node, self)

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

    def note_checkpoint(self) -> None:
        """The forward has asked for activation checkpointing."""
        self.checkpoints = self.checkpoints or not self.aside  # one inside a single call is kept

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Record one operation; name it, if it is a convolution or linear function."""
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
