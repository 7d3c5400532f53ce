"""What is wrapped around a compiled forward."""

import functools
from typing import Any

from aimgraph.emit.dispatch import dispatch
from aimgraph.emit.record import record_of
from aimgraph.emit.set_in_use import run_by_sample
from aimgraph.errors import TraceError
from aimgraph.runtime.regions import closed_contexts


def mode_checked(forward: Any) -> Any:
    """A forward that refuses to run the train graph for a part of the base in eval mode, or vice versa."""

    @functools.wraps(forward)  # torch.export goes by the signature
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        record = record_of(self)
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


def dispatched(forward: Any, decides: bool) -> Any:
    """A forward that has the base's own stand in for it where the inputs lead elsewhere."""

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return dispatch(forward, self, args, kwargs, decides=decides)

    return run


def by_sample(forward: Any) -> Any:
    """A forward in which every sample has a memory set of its own."""

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run_by_sample(forward, self, args, kwargs)

    return run


def contexts_closed(forward: Any) -> Any:
    """A forward that leaves grad mode and autocast as they were, even if it fails in the middle of a region."""

    @functools.wraps(forward)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with closed_contexts():
            return forward(self, *args, **kwargs)

    return run
