"""Runs passes in order, verifies the program between them, times them, dumps it if asked."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from aimgraph.compiler.program import BasePass, Changes, HistoryEntry, Pass, PassResult, Program, Stage
from aimgraph.compiler.verifier import Verifier
from aimgraph.errors import AimgraphError, ConfigError, PassError

Verify = Literal["touched", "full"]
Watch = Callable[[Pass, Program], None]


@dataclass(frozen=True)
class Pipeline(BasePass):
    """A sequence of passes; itself a pass.

    Attributes:
        passes: In order; those of a pipeline among them run in its place, verified as the others are.
        verify: After each pass re-derive the shapes of the nodes it touched, or of all (``full``).
        watch: Called after each verified pass; printing and dumping hang on it. One that has a method ``start`` is
            given the program before the first.
    """

    passes: tuple[Pass, ...]
    verify: Verify = "touched"
    watch: Sequence[Watch] = ()

    def __post_init__(self) -> None:
        if self.verify not in get_args(Verify):
            raise ConfigError(f'verify={self.verify!r}: give "touched", or "full" for the nodes of the whole graph')
        for step in self.passes:
            if isinstance(step, type) or not all(
                hasattr(step, name) for name in ("name", "requires", "ensures", "run")
            ):
                raise ConfigError(
                    f"passes hold {step!r}: a pass is an object with name, requires, ensures and run(program), such as "
                    "aimgraph.passes.FindSites() or an instance of a class of your own derived from BasePass"
                )

    @property
    def requires(self) -> Stage:  # type: ignore[override]
        """The earliest stage that all passes find what they require at."""
        needed, reached = Stage.TRACED, Stage.TRACED
        for step in self.passes:
            needed = max(needed, step.requires) if step.requires > reached else needed
            reached = max(reached, step.ensures, needed)
        return needed

    @property
    def ensures(self) -> Stage:  # type: ignore[override]
        """The furthest stage that a pass reaches."""
        return max((step.ensures for step in self.passes), default=Stage.TRACED)

    def run(self, program: Program) -> PassResult:
        """Run all passes.

        Args:
            program: What to compile; it is edited.

        Raises:
            PassError: A pass failed, left a program that doesn't verify, or changed what it does not declare; the
                message names it and those that ran before. An `AimgraphError` of a pass goes through as it is.
        """
        verifier = Verifier(program, full=self.verify == "full")
        start, changes = len(program.history), Changes()
        for callback in self.watch:
            getattr(callback, "start", _nothing)(program)
        for step, watch in self._steps():
            if Stage.TRACED < step.ensures <= Stage.MEMORY <= program.stage:
                raise PassError(
                    f"{step.name} is for a program without a memory, and this one has its memories: list it once"
                )
            if program.stage < step.requires:
                raise PassError(f"{step.name} needs stage {step.requires.name}, the program is at {program.stage.name}")
            started = time.perf_counter()
            result = _checked(step, program, verifier)
            entry = HistoryEntry(step.name, result.modified, time.perf_counter() - started, result.skipped)
            program = replace(
                result.program, stage=max(result.program.stage, step.ensures), history=(*result.program.history, entry)
            )
            changes |= result.changes
            for callback in watch:
                callback(step, program)
        ran = program.history[start:]
        skipped = tuple(item for entry in ran for item in entry.skipped)
        return PassResult(program, any(entry.modified for entry in ran), skipped, changes)

    def _steps(self) -> Iterator[tuple[Pass, tuple[Watch, ...]]]:
        """Every single pass, and who watches it."""
        for step in self.passes:
            inner = step._steps() if isinstance(step, Pipeline) else [(step, ())]
            yield from ((one, (*watch, *self.watch)) for one, watch in inner)


def _nothing(_program: Program) -> None:
    """What a watch without a ``start`` does."""


def _checked(step: Pass, program: Program, verifier: Verifier) -> PassResult:
    """What a pass gives, verified."""
    try:
        result = _result(step, program)
        program = result.program
        return replace(result, program=verifier.check(program, result.changes, modified=result.modified))
    except AimgraphError as error:
        if isinstance(error, PassError):
            raise PassError(f"{step.name}: {error}{_before(program)}") from error
        raise
    except Exception as error:
        raise PassError(f"{step.name} failed: {type(error).__name__}: {error}{_before(program)}") from error


def _result(step: Pass, program: Program) -> PassResult:
    result = step.run(program)
    if not isinstance(result, PassResult):
        raise PassError(f"its run gives a {type(result).__name__}; that of a pass gives a PassResult")
    return result


def _before(program: Program) -> str:
    ran = ", ".join(entry.name for entry in program.history)
    return f" (ran before: {ran})" if ran else ""
