"""Give channel groups of the base more channels: the same function, and graphs of the wider base.

Before:  y = conv2(relu(conv1(x)))                        conv1: 3 -> 8 channels
After:   y = conv2(relu(conv1(x)))                        conv1: 3 -> 12: 4 are copies, and conv2 reads each by a share

The base's own forward runs with its channels followed, so the base is traced anew when it has grown. It has to come
before a memory is planned; a module that has one is widened by `aimgraph.widen`.

Declines: groups that can't grow, each with the reason.
"""

from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from aimgraph.compiler.node_keys import SHAPES
from aimgraph.compiler.program import BasePass, Changes, PassResult, Program, Stage
from aimgraph.errors import PlanError
from aimgraph.planning.sites import Skipped
from aimgraph.runtime.call_names import OPAQUE_BASE
from aimgraph.tracing.frontend import build_program
from aimgraph.widen.build import How
from aimgraph.widen.choose import Widths
from aimgraph.widen.widening import Asked, widened


@dataclass(frozen=True)
class WidenChannels(BasePass):
    """TRACED -> TRACED. The options of `aimgraph.widen`.

    Attributes:
        widths: Glob of layers, or a regular expression after ``re:`` -> a factor, or how many channels to add.
        parameters: A budget for the whole base: a factor, or how many parameters it is to have.
        how: ``"copy"`` or ``"zero"``.
        noise: How unequally copies are read, relative to their share.
        seed: Of what is drawn.
    """

    widths: Widths | None = None
    parameters: float | int | None = None
    how: How = "copy"
    noise: float = 0.0
    seed: int = 0

    def run(self, program: Program) -> PassResult:
        """Widen the base and trace it anew.

        Raises:
            PlanError: It is planned or inserted what reads memories, or no layer can be widened as asked.
        """
        asked = Asked(self.widths, self.parameters, self.how, self.noise, self.seed)
        if program.stage > Stage.TRACED:
            raise PlanError(
                f"{self.name} comes before the passes that find sites and insert a memory, and the program is at stage "
                f"{program.stage.name}: list it first, or call aimgraph.widen on the transformed module"
            )
        root = _without_opaque(program.root)
        found = widened(root, program.signature.example, asked)
        skipped = tuple(Skipped(one.layers[0], "channels", one.reason) for one in found.plan.groups if one.reason)
        if not found.grown:
            return PassResult(program, modified=False, skipped=skipped)
        batches = (program.signature.batch, program.signature.second)
        made = build_program(found.model, program.signature.example, program.configs, share=True, batches=batches)
        changed = {name for graph in made.graphs for name in _reshaped(program, made, graph)}
        note = f"{self.name}: {found.plan.factor:.3f} x the parameters; {found.plan.notes[0]}"
        plan = replace(made.plan, notes=(*made.plan.notes, note))
        made = replace(made, history=program.history, plan=plan)
        return PassResult(made, modified=True, skipped=skipped, changes=Changes(shapes=frozenset(changed)))


def _without_opaque(root: nn.Module) -> nn.Module:
    """The base without what stands for its call where it is one."""
    if OPAQUE_BASE in root._modules:
        del root._modules[OPAQUE_BASE]
    return root


def _reshaped(before: Program, after: Program, graph: str) -> list[str]:
    """Names of the nodes of a graph that give another shape than before; their notes say what they gave."""
    old = {node.name: node for node in before.graphs.get(graph, fx.Graph()).nodes}
    found = []
    for node in after.graphs[graph].nodes:
        value = after.runs[graph].values.get(node)
        shapes = old[node.name].meta.get(SHAPES) if node.name in old else None
        if node.op != "output" and isinstance(value, Tensor) and shapes is not None and shapes[0] != tuple(value.shape):
            node.meta[SHAPES] = shapes
            found.append(node.name)
    return found
