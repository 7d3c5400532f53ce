"""Runs passes in order, verifies the program between them, times them, dumps it if asked."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from aimgraph.compiler.program import HistoryEntry, Pass, Program
from aimgraph.compiler.verifier import Verifier
from aimgraph.errors import AimgraphError, PassError

Verify = Literal["touched", "full"]


Watch = Callable[[Pass, Program], None]


@dataclass(frozen=True)
class Pipeline:
    """A sequence of passes.

    Attributes:
        passes: In order.
        verify: After each pass re-derive the shapes of the nodes it touched, or of all (``full``).
        watch: Called after each verified pass; printing and dumping hang on it.
    """

    passes: tuple[Pass, ...]
    verify: Verify = "touched"
    watch: Sequence[Watch] = ()

    def run(self, program: Program) -> Program:
        """Run all passes.

        Args:
            program: What to compile; it is edited.

        Raises:
            PassError: A pass failed or left a program that doesn't verify; the message names it
                and those that ran before. An `AimgraphError` of a pass goes through as it is.
        """
        verifier = Verifier(program, full=self.verify == "full")
        for step in self.passes:
            if program.stage < step.requires:
                raise PassError(f"{step.name} needs stage {step.requires.name}, the program is at {program.stage.name}")
            started = time.perf_counter()
            try:
                result = step.run(program)
                program = result.program
                verifier.check(program)
            except AimgraphError as error:
                if isinstance(error, PassError):
                    raise PassError(f"{step.name}: {error}{_before(program)}") from error
                raise
            except Exception as error:
                raise PassError(f"{step.name} failed: {type(error).__name__}: {error}{_before(program)}") from error
            entry = HistoryEntry(step.name, result.modified, time.perf_counter() - started, result.skipped)
            program = replace(program, history=(*program.history, entry))
            for callback in self.watch:
                callback(step, program)
        return program


def _before(program: Program) -> str:
    ran = ", ".join(entry.name for entry in program.history)
    return f" (ran before: {ran})" if ran else ""
