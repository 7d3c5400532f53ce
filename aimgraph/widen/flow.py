"""Following channels through a forward, operation by operation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aimgraph.torch_private import OpOverload, TorchDispatchMode, dispatch_modes_disabled, storage_of, tree_leaves
from aimgraph.widen.labels import Channels, Labels, compact, on_axis
from aimgraph.widen.ties import Ties


class Numbering:
    """The numbers of all channels: those of every axis of every parameter and buffer, in order.

    Args:
        tensors: Name -> a parameter or buffer; each tensor once.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.starts: dict[tuple[str, int], int] = {}
        self.names: list[tuple[str, int]] = []
        self.sizes: list[int] = []
        self.size = 1
        for name, tensor in tensors.items():
            for axis, length in enumerate(tensor.shape):
                self.starts[name, axis] = self.size
                self.names.append((name, axis))
                self.sizes.append(length)
                self.size += length
        self._bounds = torch.tensor([0, *self.starts.values()])

    def labels(self, name: str, shape: torch.Size) -> Labels:
        """What is known of a parameter or buffer: each of its axes is channels of its own, where it has several."""
        return tuple(
            Channels(
                on_axis(torch.arange(self.starts[name, axis], self.starts[name, axis] + size), axis, shape), axis, True
            )
            for axis, size in enumerate(shape)
            if size > 1
        )

    def place(self, ids: Tensor) -> Tensor:
        """Which axis each channel is of: its place in `names`."""
        return torch.searchsorted(self._bounds[1:], ids, right=True) - 1


@dataclass
class Call:
    """One operation: what it was called with, and what it gave.

    Attributes:
        func: The operator.
        given: Name of an argument -> its value, defaults included.
        outputs: The tensors that it gave.
        flow: Knows the labels of tensors.
    """

    func: OpOverload
    given: dict[str, Any]
    outputs: list[Tensor]
    flow: "Flow"

    def __getitem__(self, name: str) -> Any:
        """An argument by its name in the operator's schema."""
        return self.given.get(name)

    @property
    def ties(self) -> Ties:
        """Where to say what was seen."""
        return self.flow.ties

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [leaf for leaf in tree_leaves(self.given) if isinstance(leaf, Tensor)]

    @property
    def name(self) -> str:
        """The operator's name without its namespace."""
        return name_of(self.func)

    def labels(self, tensor: Any) -> Labels:
        """What is known of a tensor; nothing of anything else."""
        return self.flow.labels(tensor) if isinstance(tensor, Tensor) else ()

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor comes from parameters and buffers alone."""
        return self.flow.is_weight(tensor)

    def hold(self, labels: Iterable[Channels], reason: str, *, by_copies: bool = False) -> None:
        """Say of channels that they can't grow here."""
        for one in labels:
            self.ties.hold(one.ids, f"{reason}{self.flow.where()}", by_copies=by_copies)


def name_of(func: OpOverload) -> str:
    """``aten::add_.Tensor`` -> ``add_``."""
    return str(func._schema.name).partition("::")[2]


@dataclass(frozen=True)
class Step:
    """One operation of a forward, as it was.

    Attributes:
        name: Of the operator, with its overload.
        inputs: What is known of its arguments.
        outputs: Shape, dtype, device and labels of each tensor that it gave; None for labels that are not followed.
        several: Whether it gives a tuple or list.
    """

    name: str
    inputs: Labels
    outputs: tuple[tuple[torch.Size, torch.dtype, torch.device, Labels | None], ...]
    several: bool


Rule = Callable[[Call], list[Labels]]
"""Says to a call's ties what it does with channels, and gives the labels of each of its outputs."""


class Flow(TorchDispatchMode):
    """Gives every tensor that a forward makes its labels.

    Args:
        tensors: Name -> parameter or buffer, each once.
        rule: What to do with an operation.
        where: Says the place in the user's code that runs, for reasons.
    """

    def __init__(
        self, tensors: dict[str, Tensor], rule: Callable[[OpOverload], Rule], where: Callable[[], str]
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbering = Numbering(tensors)
        self.ties = Ties()
        self.where = where
        self.count = 0
        self.steps: dict[int, Step] = {}
        self._rule = rule
        self._labels: dict[int, Labels] = {}
        self._weights: set[int] = set()
        self._alive: list[Tensor] = []
        self._storages: dict[int, tuple[Tensor, Labels]] = {}
        for name, tensor in tensors.items():
            labels = self.numbering.labels(name, tensor.shape)
            self.set_labels(tensor, labels)
            self._weights.add(id(tensor))
            self._storages[storage_of(tensor)] = (tensor, labels)

    def labels(self, tensor: Tensor) -> Labels:
        """What is known of a tensor."""
        if id(tensor) in self._labels:
            return self._labels[id(tensor)]
        owner, labels = self._storages.get(storage_of(tensor), (None, ()))
        return labels if owner is not None and owner.shape == tensor.shape and owner.stride() == tensor.stride() else ()

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a tensor comes from parameters and buffers alone."""
        return id(tensor) in self._weights or (id(tensor) not in self._labels and storage_of(tensor) in self._storages)

    def set_labels(self, tensor: Tensor, labels: Labels) -> None:
        """Note what is known of a tensor."""
        if id(tensor) not in self._labels:
            self._alive.append(tensor)
        self._labels[id(tensor)] = labels if tensor.numel() else ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, then follow it."""
        result = func(*args, **(kwargs or {}))
        if isinstance(func, OpOverload):
            self.follow(func, args, kwargs or {}, result)
        return result

    def follow(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Give what an operation made its labels."""
        self.count += 1
        with dispatch_modes_disabled():
            names = [argument.name for argument in func._schema.arguments]
            defaults = {argument.name: argument.default_value for argument in func._schema.arguments}
            given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            call = Call(func, given, outputs, self)
            if not outputs or not any(self.labels(tensor) for tensor in call.tensors):
                return
            inputs = tuple(one for tensor in call.tensors for one in self.labels(tensor))
            found = [tuple(map(compact, labels)) for labels in self._rule(func)(call)]
            from_weights = all(self.is_weight(tensor) for tensor in call.tensors)
            for output, labels in zip(outputs, found, strict=False):
                self.set_labels(output, labels)
                if from_weights:
                    self._weights.add(id(output))
            followed = [*found, *[None] * len(outputs)]
            gave = tuple(
                (one.shape, one.dtype, one.device, labels) for one, labels in zip(outputs, followed, strict=False)
            )
            self.steps[self.count] = Step(str(func), inputs, gave, not isinstance(result, Tensor))
