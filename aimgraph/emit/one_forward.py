"""The forward of a transformed module: one function for its whole life, which decides at each call what runs.

Whoever keeps it, wraps it or puts it in another place (mixed precision, hooks, partial functions) has nothing that
goes stale when the mode changes, another memory set is in use, or the memory is switched off.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from aimgraph.emit.record import IN_USE, Chosen, record_of
from aimgraph.emit.retrace import retraced, tracer_of
from aimgraph.emit.set_in_use import in_use, run_by_sample
from aimgraph.errors import ConfigError
from aimgraph.torch_private import checkpointed_calls, in_backward, is_jit_tracing


def one_forward() -> Callable[..., Any]:
    """The forward of one module. It has code of its own: ``torch.compile`` counts what it makes of one code object."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _run(self, args, kwargs)

    forward.__code__ = forward.__code__.replace()
    return forward


def named_forward(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """The same with the arguments of a compiled forward by their names, as tracers want to see them.

    It is what is found below the one forward. Trainers that unwrap a forward go on to the last function that there is:
    a compiled one would be one graph for ever.
    """
    arguments = inspect.signature(compiled).parameters
    defaults = {name: one.default for name, one in arguments.items() if one.default is not one.empty}
    listed = ", ".join(f"{name}=defaults[{name!r}]" if name in defaults else name for name in arguments)
    module, *names = arguments
    source = f"def forward({listed}):\n    return run({module}, ({''.join(f'{name}, ' for name in names)}), {{}})"
    made: dict[str, Any] = {"run": _run, "defaults": defaults}
    exec(source, made)
    function: Callable[..., Any] = made["forward"]
    return function


def is_one_forward(function: Any) -> bool:
    """Whether a bound method is the forward of a transformed module, be it of another one, as in a copy."""
    below = getattr(function, "__func__", None)
    named = getattr(below, "__globals__", {}).get("run") is _run
    return named or getattr(below, "__code__", None) == one_forward().__code__


def open_signature(kind: type[nn.Module]) -> inspect.Signature | None:
    """The signature of a class's forward, if that takes more arguments than it names; else None.

    A graph has the arguments of the example inputs only. Others run the base's own forward, as inputs of another kind.
    """
    try:
        signature = inspect.signature(kind.forward)
    except (TypeError, ValueError):  # it has none that Python can see
        return None
    open_ended = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return signature if any(one.kind in open_ended for one in signature.parameters.values()) else None


def _run(aim: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    record = record_of(aim)
    if not torch.compiler.is_compiling() and not is_jit_tracing():
        if tracer_of(args, kwargs) is not None:
            if record.samples is not None:
                raise ConfigError("a graph has one memory set for all samples: trace this outside of using()")
            return retraced(aim, record.graph, record.running, args, kwargs)
        then = _chosen_then(record)
        if then != record.choice:
            return _run_as(aim, then, args, kwargs)
        if IN_USE in vars(aim):
            in_use(aim)  # its parts may have been replaced
    if record.training != aim.training:  # somebody has set the flag itself
        aim._select()
    if record.by_sample:
        return run_by_sample(record.running, aim, args, kwargs)
    return record.running(aim, *args, **kwargs)


def _chosen_then(record: Any) -> Chosen:
    """What was chosen when this forward ran first, if activation checkpointing repeats it; else what is chosen now."""
    now: Chosen = record.choice
    calls = checkpointed_calls()
    if not calls:
        return now
    known = [record.checkpointed[call] for call in calls if call in record.checkpointed] if in_backward() else []
    choices = known[0] if known else set().union(*record.checkpointed.values()) if in_backward() else {now}
    if len(choices) > 1:
        raise ConfigError(
            "activation checkpointing runs a forward again in the backward pass, and of those that wait for it some "
            f"ran with other memory sets than others ({', '.join(sorted(map(_told, choices)))}): checkpoint the calls "
            "with each set by themselves, or call backward() for each set before the next one is used"
        )
    (then,) = choices or {now}
    for call in calls:
        record.checkpointed.setdefault(call, set()).add(then)
    return then


def _told(choice: Chosen) -> str:
    name, samples, enabled = choice
    return "memory off" if not enabled else name if samples is None else "a set for each sample"


def _run_as(aim: Any, choice: Chosen, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    record = record_of(aim)
    now = record.choice
    try:
        _choose(aim, choice)
        return _run(aim, args, kwargs)
    finally:
        _choose(aim, now)


def _choose(aim: Any, choice: Chosen) -> None:
    record = record_of(aim)
    chosen, samples, record.enabled = choice
    aim._put_in_use(chosen)
    if samples is not None:
        aim._put_in_use(samples)
