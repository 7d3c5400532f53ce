"""Inputs that lead a forward another way than the example inputs did, for which there is no graph.

The base's own forward runs for them, with what each call reads added to it. That is slower than a graph, and
nothing that can be exported, but it is what the base does, whatever its forward decides.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import USUAL
from aimgraph.emit.asked import another_argument, argument_of_another_kind, unlike
from aimgraph.emit.bare import bare
from aimgraph.emit.changed import run_told
from aimgraph.emit.eager import eager_forward, why_not_eager
from aimgraph.emit.record import record_of
from aimgraph.errors import ExampleInputError
from aimgraph.fake.leftovers import Outside
from aimgraph.fake.run import FakeRun
from aimgraph.fake.tensors import quiet
from aimgraph.inputs.arguments import NOT_GIVEN, bound_arguments
from aimgraph.runtime.guards import GuardError, argument_kind, other_kind
from aimgraph.torch_private import dispatch_modes_disabled, tree_flatten

MOST_EAGER = 1024
"""Kinds of inputs that a module remembers what its graph says to."""


def dispatch(forward: Any, aim: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, decides: bool) -> Any:
    """What a graph gives, or, for inputs that it does not stand for, the base's own forward with its reads.

    In train mode a forward that fails half-way has moved statistics already: there the graph is tried on fake
    tensors first, once for all inputs of the same sizes.

    Args:
        forward: The compiled graph.
        aim: The transformed module.
        args: Of the call.
        kwargs: Of the call.
        decides: Whether the graph asks anything of its inputs.

    Raises:
        GuardError: There is no graph for these inputs, and the base's own forward can't stand in for it.
    """
    record = record_of(aim)
    other = _of_other_kind(aim, args, kwargs)
    if other is not None:
        if torch.compiler.is_compiling():
            raise other
        return _run_eager(aim, args, kwargs, other)
    if torch.compiler.is_compiling():
        return forward(aim, *args, **kwargs)
    if not decides:
        return run_told(forward, aim, args, kwargs)
    train = aim.training and not record.frozen
    key, eager = (record.present, _sizes(args, kwargs)), record.eager
    if key not in eager and train:
        if len(eager) >= MOST_EAGER:  # a number that is another one at every call
            eager.clear()
        eager[key] = _refused(aim, args, kwargs)
    error = eager.get(key)
    if error is None:
        try:
            return run_told(forward, aim, args, kwargs)
        except GuardError as refused:
            if train:
                raise
            error = eager[key] = refused.with_traceback(None)
    return _run_eager(aim, args, kwargs, error)


def _of_other_kind(aim: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> GuardError | None:
    """What there is to say of an argument that is of another kind than in the example inputs; None if there is none."""
    places, names = record_of(aim).kinds
    if len(args) == len(places) and kwargs.keys() == names.keys():
        pairs = (*zip(args, places, strict=True), *((kwargs[name], names[name]) for name in names))
        if all(other_kind(value, kind) is None for value, kind in pairs):
            return None
    elif torch.compiler.is_compiling():
        return unlike(record_of(aim).asked, args, kwargs)
    try:
        example, given = (bound_arguments(aim, inputs) for inputs in (record_of(aim).inputs, (args, kwargs)))
    except ExampleInputError:  # the forward itself says what is wrong with these
        return None
    for name in given | example:
        found = other_kind(given.get(name, NOT_GIVEN), argument_kind(example.get(name, NOT_GIVEN)))
        if found is None and (name in given) != (name in example):
            return another_argument(name, had=name in example)
        if found is not None:
            return argument_of_another_kind(name, found)
    return None


def _sizes(args: Any, kwargs: Any) -> Any:
    """What a forward can decide by: sizes and kinds of tensors, numbers, flags, and what they stand in."""
    leaves, structure = tree_flatten((args, kwargs))
    return structure, tuple(
        (leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else (type(leaf), leaf if type(leaf) in USUAL else None)
        for leaf in leaves
    )


def _refused(aim: nn.Module, args: Any, kwargs: Any) -> GuardError | None:
    """What the train graph says to these inputs, if it does not stand for them."""
    record = record_of(aim)
    try:
        with dispatch_modes_disabled(), quiet(), Outside(aim).kept():  # a counter of operations would count these, too
            FakeRun(aim, bound_arguments(aim, (args, kwargs)), train=True, grad=record.grad).run(record.graph)
    except GuardError as error:
        return error.with_traceback(None)
    except Exception:  # wrong in another way, or only on fake tensors: what the graph itself does will tell
        return None
    return None


def _run_eager(aim: nn.Module, args: Any, kwargs: Any, error: GuardError) -> Any:
    record = record_of(aim)
    base = bare(aim)
    base.training = aim.training and not record.frozen
    for name, hooks in vars(base).items():
        if name.endswith("_hooks"):  # they run around the graph
            vars(base)[name] = type(hooks)()
    if (record.enabled or record.concat_sites) and (why := why_not_eager(aim)):
        raise GuardError(f"{error}. The model's own forward can't stand in for the graph here: {why}")
    run: Any = eager_forward(base, aim, train=base.training) if record.enabled else base.forward
    question = str(error).partition(" and was ")[0]
    if question not in record.told:
        record.told.add(question)
        warnings.warn(
            f"{error}. Until then the forward of {record.base_class.__name__} itself runs for such inputs, and what "
            "its layers read is added call by call, which is slower",
            stacklevel=10,  # from torch's call of a module to the user's
        )
    return run(*args, **kwargs)
