"""Running a model with more channels: what its forward can't take, and where copies lie."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from aimgraph.torch_private import OpOverload, dispatch_modes_disabled, tree_leaves
from aimgraph.widen.flow import Flow, Rule, Step
from aimgraph.widen.functions import Functions, FunctionStep, name_of_function
from aimgraph.widen.labels import Labels, along, line
from aimgraph.widen.layout import Growth, Layout, lay_out
from aimgraph.widen.subject import Seen, Subject
from aimgraph.widen.ties import unique

APART = "where the forward cuts or reorders them, copies would come to stand beside others"


@dataclass(frozen=True)
class Refusal:
    """Channels that can't grow as they were about to, and why."""

    ids: Tensor
    reason: str


@dataclass
class Attempt:
    """What came of running a grown model.

    Attributes:
        refusals: What can't be; empty if all is well.
        layout: Where copies lie, if all is well.
        error: What ended the forward, if something else than one of its operations did.
    """

    refusals: list[Refusal]
    layout: Layout | None = None
    error: Exception | None = None


class _Grown(Flow):
    """Follows the forward of a grown model beside that of the model as it was.

    An operation that fails, or gives another shape than copies of channels would have, is noted; what it should have
    given goes on in its place, so that one run finds all of them.
    """

    def __init__(
        self,
        tensors: dict[str, Tensor],
        rule: Callable[[OpOverload], Rule],
        where: Callable[[], str],
        growth: Growth,
        before: dict[int, Step],
    ) -> None:
        super().__init__(tensors, rule, where)
        self.growth = growth
        self.before = before
        self.refusals: list[Refusal] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, see whether it did what it should, and follow it."""
        step = self.before.get(self.count + 1)
        if not isinstance(func, OpOverload) or step is None or step.name != str(func):
            return super().__torch_dispatch__(func, types, args, kwargs)
        try:
            result = func(*args, **(kwargs or {}))
        except Exception as error:  # whatever an operator raises for sizes that it can't take
            return self._instead(step, f"{func} can't take more of them: {_first_line(error)}")
        if not self._is_expected(step, result):
            return self._instead(step, f"{func} has sizes that are numbers in the code")
        self.follow(func, args, kwargs or {}, result)
        return result

    def function_failed(self, step: Step, end: int, error: Exception) -> Any:
        """Note that a function of torch failed before any operation did, and give what it should have given."""
        self.count = end - 1
        return self._instead(step, f"{step.name} can't take more of them: {_first_line(error)}")

    def _is_expected(self, step: Step, result: Any) -> bool:
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        with dispatch_modes_disabled():
            wanted = [self._shape(shape, labels) for shape, _, _, labels in step.outputs]
        return len(leaves) == len(wanted) and all(
            shape is None or tuple(leaf.shape) == shape for leaf, shape in zip(leaves, wanted, strict=True)
        )

    def _shape(self, shape: torch.Size, labels: Labels | None) -> tuple[int, ...] | None:
        """What a shape becomes; None where that can't be told."""
        if labels is None:
            return None
        rows = [along(labels, axis) for axis in range(len(shape))]
        if any(len(row) > 1 for row in rows):
            return None
        return tuple(
            size + (int(self.growth.copies[line(row[0])].sum()) if row else 0)
            for size, row in zip(shape, rows, strict=True)
        )

    def _instead(self, step: Step, reason: str) -> Any:
        """Note what failed, and give what should have come."""
        self.count += 1
        with dispatch_modes_disabled():
            self.refusals.append(Refusal(self._blamed(step), f"{reason}{self.where()}"))
            shapes = [self._shape(shape, labels) or tuple(shape) for shape, _, _, labels in step.outputs]
        made = [
            torch.empty(shape, dtype=dtype, device=device)
            for shape, (_, dtype, device, _) in zip(shapes, step.outputs, strict=True)
        ]
        return tuple(made) if step.several else made[0]

    def _blamed(self, step: Step) -> Tensor:
        """The channels that reach an operation; where none of them grows, those of the last one before that has such.

        That is where sizes were read off that it was called with.
        """
        for number in range(self.count, 0, -1):
            ids = self._grown(step.inputs)
            if len(ids):
                return ids
            step = self.before.get(number - 1, step)
        return torch.zeros(0, dtype=torch.int64)

    def _grown(self, labels: Labels) -> Tensor:
        ids = torch.cat([torch.zeros(0, dtype=torch.int64), *(unique(one.ids) for one in labels)])
        return ids[self.growth.copies[ids] > 0]


class _Functions(Functions):
    """Takes each call of a function of torch that fails for what it gave in the model as it was."""

    def __init__(self, flow: Flow, before: list[FunctionStep]) -> None:
        super().__init__(flow)
        self.before = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function."""
        number = len(self.steps)
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except Exception as error:  # whatever a function of torch raises for sizes that it can't take
            step = self.before[number] if number < len(self.before) else None
            if step is None or step.step.name != name_of_function(func) or not isinstance(self.flow, _Grown):
                raise
            self.steps.append(step)
            return self.flow.function_failed(step.step, step.end, error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def attempt(subject: Subject, growth: Growth, before: Seen) -> Attempt:
    """Run a model with more channels.

    Args:
        subject: The model.
        growth: How often each channel is there.
        before: The steps of the forward as it was.
    """
    shapes = {name: growth.shape(name, shape) for name, shape in growth.shapes.items()}
    made: list[_Grown] = []

    def flow_of(tensors: dict[str, Tensor], rule: Callable[[OpOverload], Rule], where: Callable[[], str]) -> Flow:
        made.append(_Grown(tensors, rule, where, growth, before.steps))
        return made[0]

    try:
        flow = subject.followed(shapes, flow_of, partial(_Functions, before=before.functions))
    except Exception as error:  # the model's own code, which may look at sizes itself
        return Attempt(made[0].refusals if made else [], error=error)
    if made[0].refusals:
        return Attempt(made[0].refusals)
    layout = lay_out(growth, flow.numbering, flow.ties)
    refusals = [Refusal(layout.clashes, APART)] if len(layout.clashes) else []
    if len(layout.lost):
        refusals.append(Refusal(layout.lost, APART))
    return Attempt(refusals, layout)
