"""Graphs as text, one node a line."""

from dataclasses import dataclass
from pathlib import Path

from torch import fx

from aimgraph.compiler.node_keys import VALUE
from aimgraph.compiler.program import Pass, Program
from aimgraph.errors import ConfigError
from aimgraph.runtime.given import written_to


@dataclass(frozen=True)
class DumpTo:
    """A watch that writes every graph as it was traced, and after every pass, to ``NN-pass-name[.mode].txt``.

    Attributes:
        folder: Where to; it is made.
    """

    folder: Path

    def start(self, program: Program) -> None:
        """Write the graphs before the first pass."""
        self._write("00-traced", "# traced", program)

    def __call__(self, step: Pass, program: Program) -> None:
        """Write the graphs after a pass."""
        entry = program.history[-1]
        head = f"# {step.name}: modified={entry.modified}, {entry.seconds * 1000:.1f} ms, {program.stage.name}"
        self._write(f"{len(program.history):02d}-{step.name}", head, program)

    def _write(self, name: str, head: str, program: Program) -> None:
        with written_to(self.folder, ConfigError):
            self.folder.mkdir(parents=True, exist_ok=True)
        for mode, graph in program.graphs.items():
            ending = "" if mode == "both" else f".{mode}"
            (self.folder / f"{name}{ending}.txt").write_text(f"{head}\n{graph_text(graph)}\n", encoding="utf-8")


def graph_text(graph: fx.Graph) -> str:
    """The graph, one node a line, with shapes where they are known."""
    lines = []
    for node in graph.nodes:
        value = node.meta.get(VALUE)
        line = node.format_node() or f"return {node.args[0]}"
        lines.append(line if value is None else f"{line}  # {list(value.shape)}")
    return "\n".join(lines)


def told(node: fx.Node) -> str:
    """What a node computes, for a message."""
    operands = ", ".join(str(operand) for operand in node.args)
    return f"{target_name(node)}({operands})" if node.op != "placeholder" else str(node.target)


def target_name(node: fx.Node) -> str:
    """Name of the function, method or module that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
