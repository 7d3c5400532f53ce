"""The forms of a model that are timed side by side.

``base``: the model itself. ``floor``: the base with one plain learned map added to the output of every site, the least
that a per-site memory can cost. ``split`` and ``concat``: the two lowerings. For inference also ``folded``, and, with
batch normalisation taken into the layers before it: ``fused base``, ``fused floor`` (the same with plain maps) and
``fused folded``.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from aimgraph.api.fold import fold, program_of
from aimgraph.api.transform import transform
from aimgraph.compiler.aim_paths import AIM, aim_path
from aimgraph.compiler.graph_data import plain_copy
from aimgraph.compiler.graph_tools import is_read
from aimgraph.compiler.pipeline import Pipeline
from aimgraph.compiler.program import Stage
from aimgraph.config import AimConfig
from aimgraph.copies import copy_module
from aimgraph.emit.folded_module import FoldedModule, Folds
from aimgraph.emit.module import AimModule
from aimgraph.emit.record import record_of
from aimgraph.errors import ConfigError
from aimgraph.inputs.examples import resolve_inputs
from aimgraph.passes.fold_batchnorm import FoldBatchnorm
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.function_read import group_batch
from aimgraph.runtime.reads.view import fit

TRAINING = ("base", "floor", "split", "concat")
INFERENCE = (*TRAINING, "folded")
FUSED = ("fused base", "fused floor", "fused folded")
FORMS = (*INFERENCE, *FUSED)


def build_forms(
    model: nn.Module, example_inputs: Any, configs: Sequence[AimConfig], forms: Sequence[str] = FORMS
) -> dict[str, nn.Module]:
    """`model` in several forms, each with parameters of its own and the same random read weights.

    Args:
        model: Any module that can be transformed; it is not changed.
        example_inputs: As for `aimgraph.transform`; folded forms are for this size.
        configs: One per memory; ``start`` and ``lowering`` are set here.
        forms: Of `FORMS`.

    Raises:
        ConfigError: No such form; or a form that these memories or this model don't have.
    """
    if unknown := [form for form in forms if form not in FORMS]:
        raise ConfigError(f"forms: {unknown} are unknown; there are {', '.join(FORMS)}")
    used = [
        config.model_copy(update={"start": "drawn", "start_scale": None, "lowering": "split"}) for config in configs
    ]
    split = transform(model, example_inputs, config=used)
    parts: dict[str, Any] = {
        "base": lambda: copy_module(model),
        "floor": lambda: plain_maps(split),
        "split": lambda: copy_module(split),
        "concat": lambda: _concat(model, example_inputs, used, split),
        "folded": lambda: fold(split),
        "fused base": lambda: _fused(split, maps=False),
        "fused floor": lambda: _fused(split, maps=True),
        "fused folded": lambda: fold(split, fuse_batchnorm=True),
    }
    return {form: parts[form]() for form in forms}


def plain_maps(aim: AimModule, example_inputs: Any = None) -> AimModule:
    """The floor: a copy of `aim` that reads no memory; every call of a site has one learned map of its output's shape.

    Args:
        aim: In split form.
        example_inputs: Inputs of the size of the maps; by default those of the transform.

    Raises:
        ConfigError: A layer reads inside a module that is kept as one call, or the module is in concat form.
    """
    _check(aim)
    floor = copy_module(aim)
    inputs = record_of(floor).inputs if example_inputs is None else resolve_inputs(floor, example_inputs)
    for mode in (True, False):
        floor.train(mode)
        program = program_of(floor, inputs)
        (name,) = program.graphs
        graph = program.graphs[name]
        for number, (term, shape) in enumerate(_terms(graph, program.runs[name].values)):
            with graph.inserting_before(term):
                term.replace_all_uses_with(graph.get_attr(_map(floor, number, shape, term)))
            _erase(graph, term)
        floor.graph = plain_copy(graph)
        floor.recompile()
    for memory in record_of(floor).plan.memories:
        floor.get_submodule(AIM)._modules.pop(memory.name)
    return floor.train(aim.training)


def _check(aim: AimModule) -> None:
    if record_of(aim).concat_sites:
        raise ConfigError('the floor is made from split form: transform with lowering="split"')
    for memory in record_of(aim).plan.memories:
        for read in memory.reads:
            if read.opaque:
                raise ConfigError(
                    f"{read.name} reads inside {read.opaque}, which is kept as one call: it has no floor; "
                    "leave the floors out"
                )


def _terms(graph: fx.Graph, values: dict[fx.Node, Any]) -> list[tuple[fx.Node, list[int]]]:
    """Calls of read layers and the shape of what they give for one sample: one per site."""
    found = []
    for node in list(graph.nodes):
        if not is_read(node):
            continue
        before: Any = _total(node).args[0]
        if before.target is accumulate:  # a second memory: one map is enough
            _drop(graph, node)
            continue
        view = node.all_input_nodes[0]
        shape = list(values[node].shape)
        batch_axis: Any = view.args[3] if view.target is fit else None
        if batch_axis is not None:
            shape[batch_axis] = 1
        found.append((node, shape))
    return found


def _total(term: fx.Node) -> fx.Node:
    """Where a term is added."""
    (user,) = term.users
    return next(iter(user.users)) if user.target is group_batch else user


def _drop(graph: fx.Graph, term: fx.Node) -> fx.Node:
    """Take a term out of a graph; the output that it was added to."""
    total = _total(term)
    output = total.args[0]
    assert isinstance(output, fx.Node)
    total.replace_all_uses_with(output)
    graph.erase_node(total)
    for user in list(term.users):
        graph.erase_node(user)
    _erase(graph, term)
    return output


def _map(root: nn.Module, number: int, shape: list[int], term: fx.Node) -> str:
    """Path of a learned map of this shape; train and eval graph have the same ones."""
    home = root.get_submodule(AIM)
    if "maps" not in home._modules:
        home.add_module("maps", nn.Module())
    maps = home.get_submodule("maps")
    while (name := f"map_{number}") in maps._parameters:
        if list(maps.get_parameter(name).shape) == shape:
            return aim_path("maps", name)
        number += 1000
    weight = next(root.get_submodule(str(term.target)).parameters())
    maps.register_parameter(name, nn.Parameter(torch.randn(shape, dtype=weight.dtype, device=weight.device) * 0.02))
    return aim_path("maps", name)


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node of the memory's that nothing uses, and what only it used."""
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for one in inputs:
        if not one.users and one.op != "placeholder":
            _erase(graph, one)


def _concat(model: nn.Module, inputs: Any, configs: Sequence[AimConfig], split: nn.Module) -> nn.Module:
    wide = [config.model_copy(update={"lowering": "concat"}) for config in configs]
    aim: nn.Module = transform(model, inputs, config=wide)
    aim.load_state_dict(split.state_dict())
    return aim


def _fused(aim: AimModule, *, maps: bool) -> FoldedModule:
    """The base with its norms taken into the layers before them, and, if asked for, a plain map behind every site."""
    _check(aim)
    root = copy_module(aim).eval()
    record = record_of(root)
    program = program_of(root, record.inputs)
    graph = program.graphs["eval"]
    places = []
    for term, shape in _terms(graph, program.runs["eval"].values):
        folded = _total(term).args[1] is not term
        output = _drop(graph, term)
        if folded:
            raise ConfigError(f"{term.target}: one group per sample, no map can be fused; leave the fused forms out")
        places.append((output, shape, term))
    Pipeline((FoldBatchnorm(),)).run(replace(program, stage=Stage.FOLDED))
    for number, (output, shape, term) in enumerate(places if maps else ()):
        path = _map(root, number, shape, term)
        with graph.inserting_after(output):
            added = graph.get_attr(path)
        with graph.inserting_after(added):
            total = graph.call_function(accumulate, (output, added))
        output.replace_all_uses_with(total)
        total.args = (output, added)
    for memory in record.plan.memories:
        root.get_submodule(AIM)._modules.pop(memory.name)
    return FoldedModule(root, plain_copy(graph), record.base_class.__name__, Folds((), (), {}), record.inputs)
