"""The check between passes: what a pass does not declare to change is as it was."""

from dataclasses import fields, replace

import torch
from torch import Tensor, fx

from aimgraph.compiler.graph_tools import nodes_differ, output_shapes, submodule_at
from aimgraph.compiler.node_keys import SHAPES, VALUE
from aimgraph.compiler.program import Changes, Program
from aimgraph.compiler.signature import base_names, graph_inputs
from aimgraph.errors import PassError
from aimgraph.fake.run import FakeRun
from aimgraph.inputs.arguments import bound_arguments


class Verifier:
    """Checks a program between passes.

    The graph lints, and every target resolves. Inputs, outputs, names of the base's parameters and buffers, and the
    shape that every node of the base gives are as before, but for what a pass declares.

    Args:
        program: As it is before the first pass.
        full: Whether all shapes are derived anew after every pass, and not those of the nodes that it touched.
    """

    def __init__(self, program: Program, *, full: bool) -> None:
        self.full = full
        self.snapshots = {name: nodes_differ(graph, {})[1] for name, graph in program.graphs.items()}
        self.outputs = {name: output_shapes(program, name) for name in program.graphs}

    def check(self, program: Program, changes: Changes, *, modified: bool = True) -> Program:
        """The program, its signature as the changes leave it.

        Args:
            program: What a pass gave.
            changes: What the pass declares.
            modified: Whether it says that it has changed anything.

        Raises:
            PassError: It is not sound, or something else has changed than was declared.
        """
        found = Changes(inputs=_inputs_changed(program, changes), names=_names_changed(program, changes))
        edited: list[str] = []
        for name, graph in program.graphs.items():
            touched, self.snapshots[name] = nodes_differ(graph, self.snapshots[name])
            declared = bool(changes.shapes or changes.outputs)
            if not (touched or declared):
                continue
            edited += [node.name for node in graph.nodes if node in touched]
            graph.lint()
            _check_targets(program, graph)
            if self.full or declared:
                program.runs[name], touched = _run_anew(program, name), set(graph.nodes)
            else:
                program.runs[name].rerun(graph, touched)
            shapes = _shapes_changed(program.runs[name], touched, changes)
            found |= Changes(shapes=shapes, outputs=self._outputs_changed(program, name, changes))
        _refuse_idle(changes, found)
        if not modified and (edited or found.names):
            named = ", ".join([*edited, *sorted(found.names)][:4])
            raise PassError(f"it says that it has modified nothing, and changed {named}")
        if not (found.inputs or found.names):
            return program
        placeholders = {name: graph_inputs(graph) for name, graph in program.graphs.items()}
        signature = replace(program.signature, placeholders=placeholders, parameters=base_names(program.root))
        return replace(program, signature=signature)

    def _outputs_changed(self, program: Program, name: str, changes: Changes) -> frozenset[str]:
        before = self.outputs[name]
        now = self.outputs[name] = output_shapes(program, name)
        changed = frozenset(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        for key in sorted(changed - changes.outputs):
            was, is_now = (list(seen[key]) if key in seen else "nothing" for seen in (before, now))
            raise PassError(f"{key} was {was} before and is {is_now} now")
        return changed


def _inputs_changed(program: Program, changes: Changes) -> frozenset[str]:
    changed: set[str] = set()
    for name, graph in program.graphs.items():
        before, now = program.signature.placeholders[name], graph_inputs(graph)
        if [one for one in before if one not in changes.inputs] != [one for one in now if one not in changes.inputs]:
            raise PassError(f"the inputs changed from {before} to {now}")
        changed |= set(before) ^ set(now)
    return frozenset(changed)


def _names_changed(program: Program, changes: Changes) -> frozenset[str]:
    before, now = set(program.signature.parameters), set(base_names(program.root))
    lost, new = before - now - changes.names, now - before - changes.names
    if lost or new:
        raise PassError(f"names of the base changed: lost {sorted(lost)[:4]}, new {sorted(new)[:4]}")
    return frozenset(before ^ now)


def _check_targets(program: Program, graph: fx.Graph) -> None:
    for node in graph.find_nodes(op="call_module"):
        if submodule_at(program.root, str(node.target)) is None:
            raise PassError(f"{node.name} calls {node.target}, which does not exist")


def _run_anew(program: Program, name: str) -> FakeRun:
    """A run of all nodes; inputs that a pass has added are as they were given."""
    given = {
        key: torch.empty(value.shape, dtype=value.dtype, device=value.device)
        for key, value in program.runs[name].inputs.items()
        if isinstance(value, Tensor)
    }
    arguments = given | bound_arguments(program.root, program.signature.example)
    run = FakeRun(program.root, arguments, train=name == "train", grad=program.signature.grad)
    run.run(program.graphs[name])
    return run


def _shapes_changed(run: FakeRun, nodes: set[fx.Node], changes: Changes) -> frozenset[str]:
    """Names of the base's nodes that give another shape; their notes follow."""
    changed = set()
    for node in nodes:
        value, shapes = run.values[node], node.meta.get(SHAPES)
        if not isinstance(value, Tensor) or node.op == "output":
            continue
        shape = tuple(value.shape)
        if shapes is not None and shape != shapes[0]:
            if node.name not in changes.shapes:
                raise PassError(f"{node.name} gave {list(shapes[0])} before and gives {list(shape)} now")
            changed.add(node.name)
            node.meta[SHAPES] = (shape, _at_other_batch(shape, *shapes))
        node.meta[VALUE] = value
    return frozenset(changed)


def _at_other_batch(shape: tuple[int, ...], first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """A new shape at the second batch size: dimensions that did not change are what they were there."""
    if len(shape) != len(second):
        return shape
    return tuple(b if new == a else new for new, a, b in zip(shape, first, second, strict=True))


def _refuse_idle(changes: Changes, found: Changes) -> None:
    """Refuse a declaration of what has not changed: it would hide what changes by mistake."""
    for item in fields(changes):
        idle = getattr(changes, item.name) - getattr(found, item.name)
        if idle:
            raise PassError(f"it declares changes of {item.name} that are as before: {sorted(idle)[:4]}")
