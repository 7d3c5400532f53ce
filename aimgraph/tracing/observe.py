"""What a base's own forward does, watched on fake tensors."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from aimgraph.compiler.signature import Calls, Classified
from aimgraph.errors import PlanError
from aimgraph.fake.faker import Faker
from aimgraph.fake.operations import Operation, Recorder
from aimgraph.fake.tensors import fake_inputs, quiet
from aimgraph.inputs.arguments import Arguments, bound_arguments
from aimgraph.reproducible import kept_randomness, plain_attention
from aimgraph.runtime.opaque import base_alone
from aimgraph.tracing.keeps_nothing import keeps_nothing
from aimgraph.tracing.recomputed import recomputations_watched
from aimgraph.tracing.watch_calls import WatchCalls, names_in
from aimgraph.user_code import asking_line


@dataclass(frozen=True)
class Observed:
    """What one forward of the untouched base does.

    Attributes:
        operations: On inputs, parameters, buffers and what comes from them, in order.
        calls: Of convolution and linear functions.
        error: Why the forward does not run on fake tensors, if it doesn't; there is nothing else then.
        repeats: Whether the next forward on the same inputs was seen to do the same, and takes nothing from this one.
        keeps_nothing: Whether no code that it runs could leave anything to the next one.
        recomputed: Paths of modules that checkpoint something that writes buffers.
    """

    operations: list[Operation]
    calls: Calls
    error: Exception | None = None
    repeats: bool = False
    keeps_nothing: bool = False
    recomputed: tuple[str, ...] = ()


MODES = ("train", "eval")
"""What a forward is watched in."""


def observe(
    faker: Faker,
    kinds: dict[nn.Module, Classified],
    inputs: Arguments,
    modes: Iterable[str] = MODES,
    opaque_paths: frozenset[str] = frozenset(),
    *,
    twice: bool = False,
) -> dict[str, Observed]:
    """Watch a forward in train and in eval mode, on fake tensors.

    Args:
        faker: Of the module; copies of it run.
        kinds: How each of its convolutions and linear layers can read.
        inputs: Example inputs.
        modes: Which of the two.
        opaque_paths: Paths of modules that are kept as one call.
        twice: Whether to run a second forward, and compare, unless the code says what that does.

    Raises:
        PlanError: A copy of the module reaches tensors of the model that was given.
    """
    found, still = {}, twice and keeps_nothing(faker.root)
    for mode in modes:
        forwards = Forwards(faker, kinds, mode, opaque_paths)
        with surroundings(faker):
            first = forwards.run(inputs)
            if still:
                first = replace(first, repeats=True, keeps_nothing=True)
            elif twice and first.error is None:
                second = forwards.run(inputs)
                first = replace(first, repeats=second.error is None and second.operations == first.operations)
        found[mode] = first
    return found


def line_of(
    faker: Faker,
    kinds: dict[nn.Module, Classified],
    places: frozenset[str],
    inputs: Arguments,
    mode: str,
    number: int,
) -> str:
    """The line of the user's code that does an operation of a forward.

    Args:
        faker: Of the module.
        kinds: How each of its convolutions and linear layers can read.
        places: Paths of modules that are kept as one call.
        inputs: Of the forward.
        mode: ``train`` or ``eval``.
        number: Of the operation.
    """
    forwards = Forwards(faker, kinds, mode, places)
    forwards.wanted = number
    with surroundings(faker):
        forwards.run(inputs)
    return forwards.line


class Forwards:
    """One forward of a base after another, on one copy around fake tensors, within `surroundings`.

    Args:
        faker: Of the base.
        kinds: How each of its convolutions and linear layers can read.
        mode: ``train`` or ``eval``.
        opaque_paths: Paths of modules that are kept as one call.

    Attributes:
        wanted: Number of an operation to find the line of; none is recalled then.
        line: That line.
    """

    wanted: int | None = None
    line = ""

    def __init__(
        self,
        faker: Faker,
        kinds: dict[nn.Module, Classified],
        mode: str,
        opaque_paths: frozenset[str] = frozenset(),
    ) -> None:
        paths = dict(faker.root.named_modules())
        self.faker, self.opaque_paths = faker, opaque_paths
        self.copy = faker.copy(train=mode == "train")
        self.ours = {module: kinds[paths[path]] for path, module in self.copy.named_modules() if paths[path] in kinds}
        self.reached: dict[str, str] = {}
        self.names = names_in(self.copy, self.ours, opaque_paths)
        self.recorder = Recorder(faker.tensors, (), self._seen)

    def _seen(self, given: list[Any]) -> None:
        foreign = self.faker.outside.foreign
        if len(self.recorder.operations) == self.wanted:  # and those on constants before it, which are not listed
            self.line = asking_line()
        self.reached.update({foreign[id(leaf)]: self.names.path for leaf in given if id(leaf) in foreign})

    def run(self, inputs: Arguments) -> Observed:
        """The next forward; its operations are counted from its own first one.

        Raises:
            PlanError: It reaches tensors of the model that was given.
        """
        faker, recorder = self.faker, self.recorder
        args, kwargs = fake_inputs(inputs, faker.mode)
        recorder.take(bound_arguments(faker.root, (args, kwargs)))
        run = None if self.wanted is not None else partial(faker.derived.call, mode=faker.mode, recorder=recorder)
        self.names = names_in(self.copy, self.ours, self.opaque_paths)
        watch, start = WatchCalls(self.names, run), len(recorder.operations)
        error: Exception | None = None
        again: dict[str, None] = {}
        try:
            with watch, recorder, base_alone(self.copy), recomputations_watched(self.copy, recorder, self.names, again):
                self.copy.forward(*args, **kwargs)
        except Exception as raised:  # any code may stand in a forward; told where the answer is needed
            error = raised
        _refuse_foreign(faker.root, self.reached)
        if error is not None:
            return Observed([], Calls(failed=watch.calls.failed or ""), error)
        return Observed(recorder.since(start), watch.calls, recomputed=tuple(again))


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
            "a hook, an attribute, or a list of its instances that a class keeps (snntorch's utils.reset: let that run "
            "outside of the forward). Use what the function gets as self (a method, functools.partial(function, part)) "
            "and compile the result of the transform; or share the model's parameters with inplace=True"
        )


@contextmanager
def surroundings(faker: Faker) -> Iterator[None]:
    """While a copy runs on fake tensors, and leaves nothing behind."""
    with (
        faker.outside.kept(),
        kept_randomness(),
        quiet(),
        plain_attention(),
        faker.mode,
        torch.set_grad_enabled(faker.grad),
    ):
        yield
