"""What a class holds besides its modules: members that are one and the same, and modules that stay in eval mode."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from aimgraph.runtime.layer_kinds import is_layer
from aimgraph.source_code.expressions import attribute

INDENT = "    "


def ties(root: nn.Module) -> Iterator[str]:
    """Lines that let members of a module that are one and the same be that: tied weights, shared layers."""
    modules, tensors = dict[int, str](), dict[int, str]()
    for path, module in root.named_modules(remove_duplicate=False):
        if any(path.startswith(f"{one}.") for one in _repeated(root)):
            continue
        if path and id(module) in modules:
            yield INDENT + _assigned(root, path, modules[id(module)], "module")
            continue
        modules[id(module)] = path
        members: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
        for name, tensor in members.items():
            full = f"{path}.{name}".lstrip(".")
            if tensor is not None and id(tensor) in tensors:
                kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
                yield INDENT + _assigned(root, full, tensors[id(tensor)], kind)
            elif tensor is not None:
                tensors[id(tensor)] = full


def _repeated(root: nn.Module) -> list[str]:
    """Paths of modules that stand at another path, too."""
    first: dict[int, str] = {}
    named = root.named_modules(remove_duplicate=False)
    return [path for path, module in named if first.setdefault(id(module), path) != path]


def _assigned(root: nn.Module, path: str, other: str, kind: str) -> str:
    """``self.head.weight = self.embed.weight``."""
    owner, _, name = path.rpartition(".")
    member, value = attribute(root, "", path), attribute(root, "", other)
    if not member.endswith(")"):
        return f"{member} = {value}"
    home = attribute(root, "", owner) if owner else "self"
    method = "add_module" if kind == "module" else f"register_{kind}"
    return f'{home}.{method}("{name}", {value})'


def whole_dtype(root: nn.Module) -> Iterator[str]:
    """The line that gives a module the dtype that all of it has; nothing where that is what it has anyway."""
    found = _dtypes(root)
    if len(found) == 1 and torch.float32 not in found:
        yield f"{INDENT}self.to({found.pop()})"


def layer_dtype(root: nn.Module, layer: nn.Module) -> str:
    """The dtype of a layer, if it has one of its own."""
    found, whole = _dtypes(layer), _dtypes(root)
    return str(found.pop()) if len(found) == 1 < len(whole) and torch.float32 not in found else ""


def _dtypes(module: nn.Module) -> set[torch.dtype]:
    tensors = (*module.parameters(), *module.buffers())
    return {one.dtype for one in tensors if one.is_floating_point() or one.is_complex()}


def modes(root: nn.Module) -> Iterator[str]:
    """The ``train()`` of a module of which something stays in eval mode; nothing where nothing does.

    Args:
        root: In train mode, as far as it goes.
    """
    parts = [module for module in root.modules() if not is_layer(module)]
    frozen, still = not any(part.training for part in parts), list(_still(root, ""))
    if not (frozen or still):
        return
    yield ""
    yield "def train(self, mode: bool = True) -> Self:"
    if frozen:
        yield f"{INDENT}return super().train(False)"
        return
    yield f"{INDENT}super().train(mode)"
    still = list(_still(root, ""))
    if len(still) == 1:
        yield f"{INDENT}{attribute(root, '', still[0])}.eval()"
    else:
        yield f"{INDENT}for module in ({', '.join(attribute(root, '', path) for path in still)}):"
        yield f"{INDENT * 2}module.eval()"
    yield f"{INDENT}return self"


def _still(module: nn.Module, path: str) -> Iterator[str]:
    """Paths of the largest parts that are in eval mode as a whole; to convolutions and linear layers it is the same."""
    parts = [one for one in module.modules() if not is_layer(one)]
    if path and parts and not any(one.training for one in parts):
        yield path
        return
    for name, child in module.named_children():
        yield from _still(child, f"{path}.{name}".lstrip("."))
