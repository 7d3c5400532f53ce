"""A layer kind of one's own: the linear layer of GPT-2, which keeps its weight as [inputs, outputs].

To import this file is enough: every transform afterwards lets such layers read a memory.
"""

import torch
from torch import Tensor, nn

from aimgraph.runtime.layer_kinds import LayerKind, register_layer_kind


class Conv1D(nn.Module):
    """y = x W + b on [..., C], as `transformers.pytorch_utils.Conv1D` computes it."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight = nn.Parameter(torch.empty(inputs, outputs).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., O]."""
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


class ReadConv1D(Conv1D):
    """The same without a bias, which `torch.addmm` can't do: what is added to the layer's output."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., k] -> [..., O]."""
        return x @ self.weight


class TransposedLinear(LayerKind):
    """Weight [C, O]."""

    in_axis = 0

    def channels(self, layer: Conv1D) -> tuple[int, int]:
        """(C, O)."""
        return layer.nx, layer.nf

    def set_inputs(self, layer: Conv1D, channels: int, groups: int) -> None:
        """Note another number of inputs; there are no groups."""
        layer.nx = channels

    def read_class(self, layer: Conv1D, *, raw: bool) -> type[nn.Module]:
        """The class that needs no bias."""
        return ReadConv1D

    def draw(self, layer: Conv1D) -> None:
        """Give a layer the weight that a new one has."""
        nn.init.normal_(layer.weight, std=0.02)


register_layer_kind(TransposedLinear(Conv1D))
