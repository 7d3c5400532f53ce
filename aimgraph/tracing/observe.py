"""What a base's own forward does, watched on fake tensors."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from aimgraph.compiler.signature import Calls, Classified
from aimgraph.errors import PlanError, TraceError
from aimgraph.fake.faker import Faker
from aimgraph.fake.operations import Operation, Recorder
from aimgraph.fake.tensors import fake_inputs, quiet
from aimgraph.inputs.arguments import Arguments, bound_arguments
from aimgraph.reproducible import kept_randomness, plain_attention
from aimgraph.runtime.opaque import base_alone
from aimgraph.tracing.watch_calls import WatchCalls, names_in


@dataclass(frozen=True)
class Observed:
    """What one forward of the untouched base does.

    Attributes:
        operations: On inputs, parameters, buffers and what comes from them, in order.
        calls: Of convolution and linear functions.
        error: Why the forward does not run on fake tensors, if it doesn't; there is nothing else then.
    """

    operations: list[Operation]
    calls: Calls
    error: Exception | None = None


MODES = ("train", "eval")
"""What a forward is watched in."""


def observe(
    faker: Faker,
    kinds: dict[nn.Module, Classified],
    inputs: Arguments,
    modes: Iterable[str] = MODES,
    opaque_paths: frozenset[str] = frozenset(),
) -> dict[str, Observed]:
    """Watch a forward in train and in eval mode, on fake tensors.

    Args:
        faker: Of the module; copies of it run.
        kinds: How each of its convolutions and linear layers can read.
        inputs: Example inputs.
        modes: Which of the two.
        opaque_paths: Paths of modules that are kept as one call.

    Raises:
        PlanError: A copy of the module reaches tensors of the model that was given.
    """
    return {mode: _observe_once(faker, kinds, mode, inputs, opaque_paths) for mode in modes}


def _observe_once(
    faker: Faker, kinds: dict[nn.Module, Classified], mode: str, inputs: Arguments, opaque_paths: frozenset[str]
) -> Observed:
    root = faker.root
    copy = faker.copy(train=mode == "train")
    paths = dict(root.named_modules())
    ours = {module: kinds[paths[path]] for path, module in copy.named_modules() if paths[path] in kinds}
    args, kwargs = fake_inputs(inputs, faker.mode)
    names, foreign = names_in(copy, ours, opaque_paths), faker.outside.foreign
    reached: dict[str, str] = {}

    def seen(given: list[Any]) -> None:
        reached.update({foreign[id(leaf)]: names.path for leaf in given if id(leaf) in foreign})

    recorder = Recorder(faker.tensors, bound_arguments(root, (args, kwargs)), seen)
    run = partial(faker.derived.call, mode=faker.mode, recorder=recorder)
    watch = WatchCalls(names, run)
    error: Exception | None = None
    try:
        with _surroundings(faker), watch, recorder, base_alone(copy):
            copy.forward(*args, **kwargs)
    except Exception as raised:  # any code may stand in a forward; told where the answer is needed
        error = raised
    _refuse_foreign(root, reached)
    if error is not None:
        return Observed([], Calls(failed=watch.calls.failed or ""), error)
    return Observed(recorder.operations, watch.calls)


def _refuse_foreign(root: nn.Module, reached: dict[str, str]) -> None:
    """Refuse a forward that runs with the tensors of the model that was given: its copy would train these.

    Args:
        root: A copy of the model, or of a part of it.
        reached: Name of such a tensor -> path of the module that ran.
    """
    for name, path in reached.items():
        place = f"{path} ({type(root.get_submodule(path)).__name__})" if path else f"the model ({type(root).__name__})"
        raise PlanError(
            f"{place} keeps a function that holds on to layers or tensors of the model, and uses {name} of the model "
            "that was given, in a copy of it, too: a forward replaced by a closure or by torch.compile(part.forward), "
            "a hook, or an attribute. Use what the function gets as self (a method, functools.partial(function, part)) "
            "and compile the result of the transform; or share the model's parameters with inplace=True"
        )


@contextmanager
def _surroundings(faker: Faker) -> Iterator[None]:
    """While a copy runs on fake tensors, and leaves nothing behind."""
    with faker.outside.kept(), kept_randomness(), quiet(), plain_attention(), faker.mode, torch.no_grad():
        yield


def check_forgets(faker: Faker, inputs: Arguments, setters: tuple[str, ...]) -> None:
    """See that no forward goes on from what the one before has left in attributes, which graphs don't keep.

    Args:
        faker: Of the module; copies of it run.
        inputs: Example inputs.
        setters: Paths of the modules that set attributes.

    Raises:
        TraceError: One does.
    """
    for mode in MODES if setters else ():
        copy, recorder, start = faker.copy(train=mode == "train"), Recorder(faker.tensors, ()), 0
        failed = None
        for _ in range(2):
            args, kwargs = fake_inputs(inputs, faker.mode)
            recorder.take(bound_arguments(faker.root, (args, kwargs)))
            start = len(recorder.operations)
            try:
                with _surroundings(faker), recorder, base_alone(copy):
                    copy.forward(*args, **kwargs)
            except Exception as error:  # only the second can fail: the first has been observed
                failed = error
        if failed is not None or recorder.goes_on(start):
            raise TraceError("its forward reads what the forward before has set", where=setters[0]) from failed
