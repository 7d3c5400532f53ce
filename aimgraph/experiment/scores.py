"""What a task asks for, by its labels: the loss, and the score, of which more is better."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aimgraph.errors import ConfigError
from aimgraph.models_zoo.loader import import_torchvision


def metric_of(labels: Tensor) -> str:
    """``R2`` for numbers, ``accuracy`` for classes."""
    return "R2" if labels.is_floating_point() else "accuracy"


def loss_of(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error of numbers, [B, outputs]; mean cross entropy of classes, [B] or [B, H, W]."""
    exact = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # a loss in half precision is none
    if labels.is_floating_point():
        return F.mse_loss(exact, labels.to(exact.dtype))
    return F.cross_entropy(exact, labels)


def new_metric(outputs: Tensor, labels: Tensor) -> Any:
    """A metric of torchmetrics, on the device of the outputs; between several processes it counts all."""
    if find_spec("torchvision"):
        import_torchvision()  # torchmetrics imports it
    if labels.is_floating_point():
        from torchmetrics.regression import R2Score

        return R2Score().to(outputs.device)
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(outputs.shape[1], average="micro").to(outputs.device)


def check_fit(outputs: object, labels: Tensor, model: str, data: str) -> Tensor:
    """The outputs of a model, if they fit the labels.

    Raises:
        ConfigError: They do not.
    """
    if not isinstance(outputs, Tensor):
        raise ConfigError(f"{model} gives a {type(outputs).__name__}: give a model whose output is one tensor")
    if labels.is_floating_point():
        if outputs.shape != labels.shape:
            raise ConfigError(f"{model} gives {list(outputs.shape)}, and {data} asks for {list(labels.shape)}")
        return outputs
    wanted = (len(labels), outputs.shape[1] if outputs.dim() > 1 else 0, *labels.shape[1:])
    most = int(labels.max())
    if tuple(outputs.shape) != wanted or outputs.shape[1] <= most:
        shape = ", ".join(["B", f"classes (at least {most + 1})", *map(str, labels.shape[1:])])
        raise ConfigError(
            f"{model} gives {list(outputs.shape)}, and {data} asks for [{shape}]: give a model of as many classes as "
            "there are labels"
        )
    return outputs


def is_finite(values: dict[str, torch.nn.Parameter]) -> bool:
    """Whether all are numbers."""
    return all(bool(value.detach().isfinite().all()) for value in values.values())
