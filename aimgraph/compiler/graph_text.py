"""Graphs as text, one node a line."""

from pathlib import Path

from torch import fx

from aimgraph.compiler.node_keys import VALUE
from aimgraph.compiler.pipeline import Watch
from aimgraph.compiler.program import Pass, Program
from aimgraph.errors import ConfigError
from aimgraph.runtime.given import written_to


def dump_to(folder: Path) -> Watch:
    """A watch that writes every graph after every pass to ``NN-pass-name[.mode].txt``."""

    def write(step: Pass, program: Program) -> None:
        with written_to(folder, ConfigError):
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
