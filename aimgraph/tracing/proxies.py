"""What stands for a tensor or a number while a forward is traced."""

import dis
import operator
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor, fx

from aimgraph.errors import TraceError
from aimgraph.runtime.call_names import COMPOSITE, opened
from aimgraph.runtime.inplace import INPLACE
from aimgraph.torch_private import PARAMETER_MARKS, tree_leaves
from aimgraph.tracing.values import UNKNOWN, ValueTracer


class LayerProxy(fx.Proxy):
    """A proxy that knows what its node gives on the example inputs.

    Sizes stay symbolic in the graph, while ``bool``, ``len``, ``int``, iteration and membership answer
    from that value; for the value of a tensor they refuse, because it only exists at run time. On it,
    ``x += y`` and its like are recorded as what they are: in place.
    """

    tracer: ValueTracer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__array") or name in ("__cuda_array_interface__", "__dlpack__"):
            raise AttributeError(f"a proxy has no {name}: numpy goes by its items and its value instead")
        if name in PARAMETER_MARKS:
            return getattr(self.tracer.known(self), name, False)
        if not self.tracer.has(self, name):
            raise AttributeError(f"{self.node.name} has no attribute {name!r}")
        value = self.tracer.known(self)
        if not isinstance(value, Tensor) and value is not UNKNOWN and getattr(value, name) is None:
            return None
        return LayerAttribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse: ``x.data = y``, ``x.requires_grad = True`` and their like would stay on the stand-in."""
        if name not in _OWN:
            raise TraceError(f"the forward sets {name!r} of a tensor ({self.node.name}), which a graph does not keep")
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[Any]:
        # test_unpacking_asks_for_the_length_of_what_is_given: iter(self) alone would ask for the rank of every tensor
        caller = sys._getframe(1)
        count = _unpacked(caller.f_code, caller.f_lasti)
        tensor = isinstance(self.tracer.known(self), Tensor)
        if count is None or tensor or _is_given(self.node):  # what is given may have another length at another call
            return self.tracer.iter(self)
        items: Any = self
        return (items[i] for i in range(count))

    def __len__(self) -> int:
        return int(self.tracer.ask(self, "len()"))

    def __int__(self) -> int:
        return int(self.tracer.ask(self, "int()"))

    def __index__(self) -> int:
        return int(self.tracer.ask(self, "an index", sys._getframe(1)))

    def __float__(self) -> float:
        return float(self.tracer.ask(self, "float()"))

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


_OWN = frozenset(("node", "tracer", "root", "attr", "_node", *PARAMETER_MARKS))
"""What a stand-in consists of, and what ``nn.Parameter(x)`` sets on one."""


def _is_given(node: fx.Node) -> bool:
    """Whether a node is an input, or a part of one."""
    while node.op == "call_function" and node.target is operator.getitem:
        node = node.all_input_nodes[0]
    return node.op == "placeholder"


@lru_cache(maxsize=4096)
def _unpacked(code: CodeType, offset: int) -> int | None:
    """Into how many names the instruction at `offset` unpacks, as in ``B, C, H, W = x.shape``; None for another one."""
    found = (
        one.argval for one in dis.get_instructions(code) if (one.offset, one.opname) == (offset, "UNPACK_SEQUENCE")
    )
    return next(found, None)


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
