"""The files of a source: a module of classes, an ``__init__`` that loads the weights, and these."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from aimgraph.source_code.classes import classes_of
from aimgraph.source_code.copied import calls, copies
from aimgraph.source_code.inline import SHAPE, Traced
from aimgraph.source_code.layout import WIDTH, wrapped

WEIGHTS = "weights.safetensors"

FROZEN = "frozen"
"""Key in the metadata of the weights: names of the parameters that do not require gradients, as JSON."""


@dataclass(frozen=True)
class Source:
    """What is written.

    Attributes:
        name: Of the class.
        model: The module of classes.
        init: The ``__init__`` of the package.
        imports: Classes that are imported, as ``package.module.Class``.
    """

    name: str
    model: str
    init: str
    imports: tuple[str, ...]


def source_of(subject: Traced) -> Source:
    """The text of a module with graphs down to torch's own modules."""
    classes = classes_of(subject)
    name = classes.name
    written = wrapped(classes.text())
    text = "\n\n\n".join([*copies(written), written])
    others = sorted({f"from {module} import {kind}" for kind, module in classes.imported.items()})
    standard = _standard(text)
    head = [*standard, *([""] if standard else []), *_of_torch(text), *(["", *others] if others else [])]
    model = "\n".join([*_told(subject, name), *head, "", "", text, ""])
    frozen = any(not parameter.requires_grad for parameter in subject.root.parameters())
    imports = tuple(f"{module}.{kind}" for kind, module in sorted(classes.imported.items()))
    return Source(name, model, _init(name, frozen=frozen, last=_is_channels_last(subject.root)), imports)


def _is_channels_last(root: nn.Module) -> bool:
    """Whether weights lie in memory with their channels last."""
    maps = [one for one in root.parameters() if one.dim() == _MAP and not one.is_contiguous()]
    return bool(maps) and all(one.is_contiguous(memory_format=torch.channels_last) for one in maps)


_MAP = 4
"""Dimensions of the weights of convolutions over maps."""


def _told(subject: Traced, name: str) -> list[str]:
    """The docstring of the module."""
    places = subject.graphs["eval"].find_nodes(op="placeholder")
    inputs = [f"{node.target} {node.meta[SHAPE]}" for node in places if SHAPE in node.meta]
    shapes = ["Shapes in comments are those for the example's inputs, where B is the batch size", *inputs]
    told = f"Shapes in comments are those for {', '.join(inputs)}, where B is the batch size."
    lines = [told] if inputs and len(told) <= WIDTH else [f"{shapes[0]}{':' if inputs else '.'}", *inputs]
    return [f'"""{name} as plain PyTorch.', "", *lines, '"""', ""]


def _standard(text: str) -> list[str]:
    found = ["import math"] if "math." in text else []
    if calls(text, "OrderedDict"):
        found.append("from collections import OrderedDict")
    if "@dataclass\n" in text:
        found.append("from dataclasses import dataclass")
    typing = [name for name in ("Any", "NamedTuple", "Self") if re.search(rf"(?<![\w.\"]){name}\b", text)]
    return [*found, *([f"from typing import {', '.join(typing)}"] if typing else [])]


def _of_torch(text: str) -> list[str]:
    names = ["Tensor", "nn"] if re.search(r"(?<![\w.])Tensor\b", text) else ["nn"]
    whole = ["import torch"] if re.search(r"(?<![\w.])torch\.", text) else []
    functions = ["from torch.nn import functional as F"] if re.search(r"(?<![\w.])F\.", text) else []
    return [*whole, f"from torch import {', '.join(names)}", *functions]


def _init(name: str, *, frozen: bool, last: bool) -> str:
    """The ``__init__`` of the package.

    Args:
        name: Of the class.
        frozen: Whether some parameters do not require gradients.
        last: Whether channels are the last in memory.
    """
    standard = ["import json", "from pathlib import Path", ""] if frozen else ["from pathlib import Path", ""]
    file = ("import torch\n" if last else "") + ("from safetensors import safe_open\n" if frozen else "")
    freeze = f"""    with safe_open(weights, "pt") as file:
        for parameter in json.loads(file.metadata()["{FROZEN}"]):
            network.get_parameter(parameter).requires_grad_(False)
"""
    head = "\n".join(standard)
    return f'''"""{name} as plain PyTorch: `load` gives it with its weights."""

{head}
{file}from safetensors.torch import load_model

from .model import {name}

__all__ = ["{name}", "load"]


def load() -> {name}:
    """The network with the weights of this folder, in eval mode."""
    network, weights = {name}(), Path(__file__).with_name("{WEIGHTS}")
    load_model(network, weights)
{freeze if frozen else ""}    return network{".to(memory_format=torch.channels_last)" if last else ""}.eval()
'''


def write(source: Source, root: nn.Module, folder: Path) -> None:
    """Write the files of a source.

    Args:
        source: The text.
        root: Owner of the weights.
        folder: It is there, and empty.
    """
    (folder / "model.py").write_text(source.model, encoding="utf-8")
    (folder / "__init__.py").write_text(source.init, encoding="utf-8")
    held = {**dict(root.named_parameters()), **dict(root.named_buffers())}
    tensors = {name: one.detach().clone(memory_format=torch.contiguous_format) for name, one in held.items()}
    frozen = [name for name, parameter in root.named_parameters() if not parameter.requires_grad]
    save_file(tensors, str(folder / WEIGHTS), metadata={FROZEN: json.dumps(frozen)} if frozen else None)
