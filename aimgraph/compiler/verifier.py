"""The check between passes: what a pass did not say that it changes is as it was."""

from torch import Tensor, fx

from aimgraph.compiler.graph_tools import nodes_differ
from aimgraph.compiler.node_keys import AIM, SHAPES
from aimgraph.compiler.program import Program
from aimgraph.errors import PassError
from aimgraph.fake.run import FakeRun
from aimgraph.inputs.arguments import bound_arguments


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
