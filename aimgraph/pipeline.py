"""Runs passes in order, verifies the program between them, times them, dumps it if asked."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor, fx

from aimgraph.arguments import bound_arguments
from aimgraph.errors import AimgraphError, PassError
from aimgraph.fakes import FakeRun
from aimgraph.passes import (
    ExposeState,
    FindSites,
    FoldBatchnorm,
    FoldMemory,
    InsertMemory,
    InsertUpdates,
    MergeMaps,
    PlaceUpdates,
    PlanMemory,
    RemoveDead,
    SplitConcat,
    WidenLayers,
)
from aimgraph.passes.graph_tools import nodes_differ
from aimgraph.program import AIM, SHAPES, HistoryEntry, Pass, Program

Verify = Literal["touched", "full"]
Watch = Callable[[Pass, Program], None]

PLANNING: tuple[Pass, ...] = (FindSites(), PlaceUpdates(), PlanMemory())
EMITTING: tuple[Pass, ...] = (InsertMemory(), InsertUpdates(), SplitConcat(), WidenLayers(), RemoveDead())
FOLDING: tuple[Pass, ...] = (FoldMemory(), FoldBatchnorm(), MergeMaps(), RemoveDead())
EXPORTING: tuple[Pass, ...] = (ExposeState(),)


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


def dump_to(folder: Path) -> Watch:
    """A watch that writes every graph after every pass to ``NN-pass-name[.mode].txt``."""

    def write(step: Pass, program: Program) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number = len(program.history)
        for name, graph in program.graphs.items():
            mode = "" if name == "both" else f".{name}"
            entry = program.history[-1]
            head = f"# {step.name}: modified={entry.modified}, {entry.seconds * 1000:.1f} ms, {program.stage.name}\n"
            text = head + graph_text(graph) + "\n"
            (folder / f"{number:02d}-{step.name}{mode}.txt").write_text(text, encoding="utf-8")

    return write


def graph_text(graph: fx.Graph) -> str:
    """The graph, one node a line, with shapes where they are known."""
    lines = []
    for node in graph.nodes:
        value = node.meta.get("val")
        line = node.format_node() or f"return {node.args[0]}"
        lines.append(line if value is None else f"{line}  # {list(value.shape)}")
    return "\n".join(lines)


class Verifier:
    """Checks a program between passes.

    The graph lints, every target resolves, inputs and the base's parameter names are unchanged,
    and every node of the base still gives the shape it gave before.
    """

    def __init__(self, program: Program, *, full: bool) -> None:
        self.full = full
        self.snapshots = {name: nodes_differ(graph, {})[1] for name, graph in program.graphs.items()}

    def check(self, program: Program) -> None:
        """Raise `PassError` if the program is not sound."""
        self._check_names(program)
        for name, graph in program.graphs.items():
            touched, self.snapshots[name] = nodes_differ(graph, self.snapshots[name])
            if not touched:
                continue
            graph.lint()
            self._check_targets(program, graph)
            run = program.runs[name]
            if self.full:
                real = frozenset(path for path, item in program.signature.opaque.items() if item.needs_values)
                arguments = bound_arguments(program.root, program.signature.example)
                run = FakeRun(program.root, arguments, real=real, train=name == "train")
                run.run(graph)
            else:
                run.rerun(graph, touched)
            self._check_shapes(graph, run, set(graph.nodes) if self.full else touched)

    def _check_names(self, program: Program) -> None:
        for name, graph in program.graphs.items():
            placeholders = tuple(str(node.target) for node in graph.find_nodes(op="placeholder"))
            if placeholders != program.signature.placeholders[name]:
                raise PassError(f"the inputs changed from {program.signature.placeholders[name]} to {placeholders}")
        root = program.root
        names = {n for n, _ in root.named_parameters(remove_duplicate=False)}
        names |= {n for n, _ in root.named_buffers(remove_duplicate=False)}
        lost = set(program.signature.parameters) - names
        new = {n for n in names - set(program.signature.parameters) if not n.startswith(f"{AIM}.")}
        if lost or new:
            raise PassError(f"names of the base changed: lost {sorted(lost)[:4]}, new {sorted(new)[:4]}")

    def _check_targets(self, program: Program, graph: fx.Graph) -> None:
        for node in graph.nodes:
            if node.op == "call_module":
                try:
                    program.root.get_submodule(str(node.target))
                except AttributeError as error:
                    raise PassError(f"{node.name} calls {node.target}, which does not exist") from error

    def _check_shapes(self, graph: fx.Graph, run: FakeRun, nodes: set[fx.Node]) -> None:
        for node in nodes:
            value = run.values[node]
            if not isinstance(value, Tensor):
                continue
            before = node.meta.get(SHAPES)
            if before is not None and tuple(value.shape) != before[0]:
                raise PassError(f"{node.name} gave {list(before[0])} before and gives {list(value.shape)} now")
            node.meta["val"] = value


def _before(program: Program) -> str:
    ran = ", ".join(entry.name for entry in program.history)
    return f" (ran before: {ran})" if ran else ""
