"""From a program to the module that users get."""

from dataclasses import replace

from torch import fx, nn

from aimgraph.compiler.aim_paths import AIM, aim_path
from aimgraph.compiler.graph_data import plain_copy
from aimgraph.compiler.graph_tools import submodule_at
from aimgraph.compiler.program import Program
from aimgraph.compiler.signature import Signature, layer_paths
from aimgraph.emit.asked import asked_of
from aimgraph.emit.draw_memory import read_scale
from aimgraph.emit.given import samples_of
from aimgraph.emit.methods import may_tell
from aimgraph.emit.module import AimModule
from aimgraph.emit.record import EXTRA_STATE, ConcatSite, Record
from aimgraph.inputs.examples import recorded
from aimgraph.passes import EMITTING, PLANNING
from aimgraph.planning.start import start_of
from aimgraph.runtime.layers import weight_shape

_OF_MEMORY = frozenset(step.name for step in (*PLANNING, *EMITTING))


def emit(model: nn.Module, program: Program) -> AimModule:
    """The module of a compiled program."""
    root, kind = program.root, type(model)
    if AIM not in root._modules:
        root.add_module(AIM, nn.Module())
    for module in root.get_submodule(AIM).modules():
        module.training = root.training
    attributes = tuple(name for name in vars(model) if name not in vars(nn.Module()))
    lost = _lost_members(kind)
    others = tuple(entry for entry in program.history if entry.name not in _OF_MEMORY)
    skipped = tuple(f"{entry.name} left {item.path}: {item.reason}" for entry in others for item in entry.skipped)
    changed = tuple(entry.name for entry in others if entry.modified)
    record = Record(
        plan=replace(program.plan, notes=program.plan.notes + _note_of_lost(kind, lost) + skipped),
        base_class=kind,
        base_attributes=attributes,
        lost_methods=lost,
        inputs=recorded(program.signature.example),
        moded=program.signature.moded,
        graphs=_graphs(program),
        concat_sites=_concat_sites(program),
        held=_held_modes(root),
        layers=layer_paths(root, program.kinds),
        other_passes=changed,
        batches=_other_batches(program.signature),
        grad=program.signature.grad,
        asked=asked_of(root, program.signature.example),
        scales={} if changed else _scales(program),
    )
    made = AimModule(root, record)
    record.given = samples_of(made)
    return made


def _graphs(program: Program) -> dict[str, fx.Graph]:
    now = {f"aim.{name}": plain_copy(graph) for name, graph in program.graphs.items()}
    return now | {f"base.{name}": graph for name, graph in program.traced.items()}


def _note_of_lost(kind: type[nn.Module], lost: tuple[str, ...]) -> tuple[str, ...]:
    gone = [name for name in lost if hasattr(AimModule, name) or not may_tell(kind, name)]
    return (f"methods of {kind.__name__} that are lost: {', '.join(gone)}",) if gone else ()


def _scales(program: Program) -> dict[tuple[str, str], float]:
    """Memory and read -> b that its weight was drawn with, which may depend on weights that are trained later."""
    return {
        (memory.name, read.name): read_scale(program.root, read, layer, start_of(memory))
        for memory in program.plan.memories
        if memory.config.start == "zero_values"
        for read in memory.reads
        if (layer := submodule_at(program.root, aim_path(memory.name, "reads", read.name))) is not None
    }


def _other_batches(signature: Signature) -> tuple[int, int] | None:
    """The batch sizes that a base was looked at, where they are others than one and the next."""
    return (signature.batch, signature.second) if signature.second > signature.batch + 1 else None


def _held_modes(root: nn.Module) -> dict[bool, tuple[str, ...]]:
    """Mode of the model -> paths of the modules that its own ``train()`` keeps in the other one (frozen norms)."""
    if type(root).train is nn.Module.train and type(root).eval is nn.Module.eval:
        return {}
    flags = {module: module.training for module in root.modules()}
    held = {}
    for mode in (True, False):
        root.train(mode) if mode else root.eval()
        paths = (path for path, module in root.named_modules() if module is not root and module.training != mode)
        held[mode] = tuple(path for path in paths if path.partition(".")[0] != AIM)
    for module, flag in flags.items():
        module.training = flag
    return held


def _lost_members(kind: type[nn.Module]) -> tuple[str, ...]:
    """Methods and properties of the base's class that an `AimModule` does not have, or has for itself."""
    own = {name for parent in kind.__mro__ if parent not in nn.Module.__mro__ for name in vars(parent)}
    own -= {"forward", "train", "eval", *EXTRA_STATE}
    protocols = {"__len__", "__getitem__", "__iter__", "__contains__"}
    names = sorted(name for name in own if not name.startswith("_") or name in protocols)
    return tuple(name for name in names if callable(value := getattr(kind, name)) or isinstance(value, property))


def _concat_sites(program: Program) -> tuple[ConcatSite, ...]:
    found: dict[str, dict[str, int]] = {}
    for memory in program.plan.memories:
        for read in memory.reads:
            if read.lowering == "concat":
                found.setdefault(read.site, {})[aim_path(memory.name, "reads", read.name, "weight")] = read.channels
    sites = []
    for site, reads in found.items():
        named, layer = program.root.named_modules(remove_duplicate=False), program.root.get_submodule(site)
        paths = tuple(path for path, module in named if module is layer)
        sites.append(ConcatSite(site, paths, tuple(reads), tuple(reads.values()), weight_shape(layer)))
    return tuple(sites)
