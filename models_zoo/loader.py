"""Models by name: ``zoo/NAME``, ``torchvision/NAME``, ``timm/NAME``, ``FILE.onnx`` or ``package.module:factory``."""

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

from aimgraph.errors import ExampleInputError
from aimgraph.models_zoo.mlp import mlp
from aimgraph.models_zoo.onnx_file import read_onnx
from aimgraph.models_zoo.pretrained import efficientnet_lite0
from aimgraph.models_zoo.resnet_keras import resnet50_keras
from aimgraph.models_zoo.vgg import vgg16

ZOO: dict[str, Callable[..., nn.Module]] = {
    "efficientnet_lite0": efficientnet_lite0,
    "mlp": mlp,
    "resnet50_keras": resnet50_keras,
    "vgg16": vgg16,
}
"""Our own networks."""


def load_model(name: str, **options: Any) -> nn.Module:
    """Build the model called `name`, with freshly initialised weights unless a factory loads some.

    ``package.module:factory`` imports and calls the user's own code, with the current directory
    on the path.

    Args:
        name: One of the forms above.
        **options: Arguments of the constructor.

    Raises:
        ExampleInputError: The name has no such form, or there is no such model.
        TraceError: An ONNX file has an operator that can't be read.
    """
    if name.endswith(".onnx"):
        if importlib.util.find_spec("torchvision"):
            import_torchvision()  # onnx2torch takes it as it is
        return read_onnx(name, **options)
    if ":" in name:
        return _from_factory(name, options)
    source, _, model = name.partition("/")
    if source == "zoo" and model:
        return _pick(model, ZOO, "zoo")(**options)
    if source == "torchvision" and model:
        models = import_library("torchvision").models
        _check(model, models.list_models(), "torchvision")
        return _module(models.get_model(model, **({"weights": None} | options)), name)
    if source == "timm" and model:
        timm = import_library("timm")
        _check(model, timm.list_models(), "timm")
        return _module(timm.create_model(model, **({"pretrained": False} | options)), name)
    libraries = ("zoo", "torchvision", "timm")
    having = [f"{library}/{name}" for library in libraries if name in _names(library)]
    having += [f"{library}/{model}" for library in difflib.get_close_matches(source, libraries, n=1) if model]
    meant = f"; did you mean {' or '.join(having)}?" if having else ""
    raise ExampleInputError(
        f"MODEL is {name!r}; give zoo/NAME, torchvision/NAME, timm/NAME, FILE.onnx or package.module:factory "
        f"(zoo has: {', '.join(ZOO)}){meant}"
    )


def _names(library: str) -> Collection[str]:
    """Names of the models of a library; none if it is not installed."""
    if library == "zoo":
        return ZOO
    try:
        module = import_library(library)
    except ExampleInputError:
        return ()
    names: Collection[str] = (module.models if library == "torchvision" else module).list_models()
    return names


def import_library(name: str) -> Any:
    """Import torchvision or timm.

    Raises:
        ExampleInputError: It is not installed.
    """
    torchvision = import_torchvision()
    return torchvision if name == "torchvision" else _import("timm", "timm")


def import_torchvision() -> Any:
    """Import torchvision, even where its compiled part was built for another torch.

    That part then fails to load and importing torchvision stops at "operator torchvision::nms does
    not exist". Everything but detection operators works once their schemas are defined.

    Raises:
        ExampleInputError: torchvision is not installed.
    """
    try:
        return _import("torchvision", "torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[module]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)
    return _import("torchvision", "torchvision")


_LIBRARIES: list[torch.library.Library] = []
"""Keeps the schemas alive: a collected library takes its definitions along."""


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise ExampleInputError(f"{package} is not installed: pip install 'aimgraph[zoo]'") from error


def _from_factory(name: str, options: dict[str, Any]) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ExampleInputError(f"{name}: {error}; is it installed, or below the current directory?") from error
    factory: Any = module
    for part in attribute.split("."):
        if not hasattr(factory, part):
            near = difflib.get_close_matches(part, dir(factory), n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ExampleInputError(f"{module_name} has no {part!r}{hint}")
        factory = getattr(factory, part)
    if not callable(factory) or isinstance(factory, nn.Module):
        return _module(factory, name)
    try:
        return _module(factory(**options), name)
    except ExampleInputError:
        raise
    except Exception as error:  # the user's own code
        raise ExampleInputError(f"{name}() raised {type(error).__name__}: {error}") from error


def _module(model: Any, name: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ExampleInputError(f"{name} gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def _pick(name: str, models: dict[str, Callable[..., nn.Module]], source: str) -> Callable[..., nn.Module]:
    _check(name, list(models), source)
    return models[name]


def _check(name: str, names: list[str], source: str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=4, cutoff=0.4)
        hint = f"near misses: {', '.join(near)}" if near else f"there are: {', '.join(names[:8])}"
        raise ExampleInputError(f"{source} has no model {name!r}; {hint}")
