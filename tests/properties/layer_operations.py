"""Steps of random networks that call convolutions and linear layers: modules, functions, shared, tied, in windows."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.properties.recipes import GRIDS, Op, channels, layer_for


class Conv(Op):
    """A convolution of any groups, stride, dilation and padding mode."""

    takes = ("seq", "map", "vol")

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        s, rank = self.step, GRIDS[self.kind]
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
        groups = (1, 1, c, 2 if c % 2 == 0 else 1, math.gcd(c, s.width))[self.flag % 5]
        width = -(-s.width // groups) * groups
        mode = "zeros" if rank == 3 else ("zeros", "reflect", "circular", "replicate", "zeros", "zeros")[self.flag]
        pad = min(s.kernel // 2, min(x.shape[2:]) - 1)
        kernel = s.kernel if pad == s.kernel // 2 and min(x.shape[2:]) >= s.kernel - 2 * pad else 1
        self.layer = conv(c, width, kernel, s.stride, pad, groups=groups, bias=s.a % 2 == 0, padding_mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x) if self.flag == 4 else self.layer(x)


class Transposed(Op):
    """A transposed convolution, with an output size given at the call or not."""

    takes = ("seq", "map")

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        s = self.step
        conv = (nn.ConvTranspose1d, nn.ConvTranspose2d)[GRIDS[self.kind] - 1]
        self.layer = conv(c, s.width, s.kernel, s.stride, groups=math.gcd(c, s.width) if self.flag % 2 else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.flag < 4:
            return self.layer(x)
        s = self.step
        return self.layer(x, output_size=[(n - 1) * s.stride + s.kernel + s.stride - 1 for n in x.shape[2:]])


class Linear(Op):
    takes = ("vec", "tok")

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.layer = layer_for(self.kind, c, self.step.width, self.step)

    def forward(self, x: Tensor) -> Tensor:
        if self.flag == 3 and self.kind == "tok":
            return self.layer(x.transpose(0, 1)).transpose(0, 1)  # sequence first
        if self.flag == 4:
            return self.layer(x).relu_()
        return self.layer(x)


class ChannelsLast(Op):
    """Linear layers over [B, *S, C]."""

    takes = ("seq", "map", "vol")

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.up, self.down = nn.Linear(c, self.step.width), nn.Linear(self.step.width, c)
        self.norm = nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.gelu(self.up(self.norm(x.movedim(1, -1)))))
        return x + y.movedim(-1, 1)


class Windows(Op):
    """A linear layer over windows: its batch is a multiple of the model's."""

    takes = ("tok", "seq")
    gives = "tok"

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.mix = nn.Linear(x.shape[2], self.step.width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, f = x.shape
        parts = 3 if t % 3 == 0 else 2 if t % 2 == 0 else 1
        y = self.mix(x.reshape(b * parts, t // parts, f))
        return y.reshape(b, t, -1)


class Functional(Op):
    """A convolution or linear function with parameters, weights computed or not."""

    takes = ("vec", "tok", "seq", "map")

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        s, rank = self.step, GRIDS.get(self.kind, 0)
        self.groups = math.gcd(c, s.width) if rank and s.a % 2 else 1
        kernel = min(s.kernel, *x.shape[2:]) if rank else 1
        width = s.width
        self.weight = nn.Parameter(torch.randn(width, c // self.groups, *[kernel] * rank) * 0.4)
        self.bias = nn.Parameter(torch.randn(width)) if s.b % 2 else None
        self.register_buffer("mask", (torch.rand(self.weight.shape) > 0.3).to(self.weight))

    def _weight(self) -> Tensor:
        made = [lambda w: w, lambda w: w - w.mean(), lambda w: w.softmax(1), lambda w: w * self.mask, torch.tanh]
        return made[self.flag % 5](self.weight)

    def forward(self, x: Tensor) -> Tensor:
        w = self._weight()
        if self.kind not in GRIDS:
            return F.linear(x, w, self.bias) if self.flag % 2 else F.linear(input=x, weight=w, bias=self.bias)
        conv = (F.conv1d, F.conv2d)[GRIDS[self.kind] - 1]
        if self.flag == 0:
            return conv(x, w, self.bias, self.step.stride, 0, 1, self.groups)
        if self.flag == 1:
            return conv(x, weight=w, bias=self.bias, groups=self.groups)
        pad = (w.shape[-1] // 2,) * GRIDS[self.kind]
        return conv(input=x, weight=w, bias=self.bias, stride=self.step.stride, padding=pad, groups=self.groups)


class FunctionalTransposed(Op):
    takes = ("seq", "map")

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.groups = math.gcd(c, self.step.width) if self.flag % 2 else 1
        shape = (c, self.step.width // self.groups, *[self.step.kernel] * GRIDS[self.kind])
        self.weight = nn.Parameter(torch.randn(shape) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        conv = (F.conv_transpose1d, F.conv_transpose2d)[GRIDS[self.kind] - 1]
        if self.flag < 3:
            return conv(x, self.weight, None, self.step.stride, groups=self.groups)
        return conv(x, self.weight * 2, stride=self.step.stride, groups=self.groups)


class TwoFunctions(Op):
    """One function called several times by one module, in a loop, with one weight or several."""

    takes = ("vec", "tok")

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(c, c) * 0.4) for _ in range(2))
        self.qkv = nn.Parameter(torch.randn(3 * c, c) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        if self.flag % 3 == 0:
            q, k, v = F.linear(x, self.qkv).chunk(3, -1)
            return q * torch.sigmoid(k) + v
        if self.flag % 3 == 1:
            q, k, v = (F.linear(x, w) for w in self.qkv.chunk(3))
            return q * torch.sigmoid(k) + v
        for weight in self.weights:
            x = torch.tanh(F.linear(x, weight))
        return x + F.linear(x, self.weights[0])


class Repeated(Op):
    """A module with a functional call, called several times; the weight is the caller's or its own."""

    takes = ("vec", "tok", "seq", "map")

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.mixers = nn.ModuleList(Mixer(c) for _ in range(2))
        self.other = nn.Parameter(torch.randn(c, c) * 0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1) if self.kind in GRIDS else x
        for mixer in (*self.mixers, self.mixers[0]):
            x = mixer(x, self.other if self.flag == 5 and mixer is self.mixers[1] else None)
        if self.flag == 4:
            x = self.mixers[1](x, self.other)
        return x.movedim(-1, 1) if self.kind in GRIDS else x


class Mixer(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c, c) * 0.4)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        return torch.tanh(F.linear(x, self.weight if weight is None else weight))


class SampleKernels(Op):
    """A kernel per sample: the batch is folded into the groups."""

    takes = ("map", "seq")

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.route = nn.Linear(c, 3)
        self.shape = (self.step.width, c, *[1 if self.flag % 2 else 3] * GRIDS[self.kind])
        self.kernels = nn.Parameter(torch.randn(3, math.prod(self.shape)) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        b, c, *grid = x.shape
        kernels = self.route(x.flatten(2).mean(2)).softmax(-1) @ self.kernels
        kernels = kernels.reshape(b * self.shape[0], *self.shape[1:])
        conv = (F.conv1d, F.conv2d)[GRIDS[self.kind] - 1]
        y = conv(x.reshape(1, b * c, *grid), kernels, padding=self.shape[-1] // 2, groups=b)
        return y.reshape(b, self.shape[0], *grid)


class Resolutions(Op):
    """One layer called at several resolutions."""

    takes = ("tok", "seq", "map", "vol")

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.layer = layer_for(self.kind, c, c, self.step)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "tok":
            y = self.layer(x)
            return torch.cat([y, self.layer(y[:, ::2]), self.layer(y.mean(1)).unsqueeze(1)], 1)
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[GRIDS[self.kind] - 1]
        y = torch.relu(self.layer(x))
        small = self.layer(pool(y, 2, ceil_mode=True)) if self.flag % 2 else self.layer(y[:, :, ::2])
        return y + small.mean(dim=tuple(range(2, small.dim())), keepdim=True)


class Shared(Op):
    """A layer that some earlier step owns, under its first name or an alias, as a module or by its weight."""

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        kinds = nn.Linear if self.kind not in GRIDS else (nn.Conv1d, nn.Conv2d, nn.Conv3d)[GRIDS[self.kind] - 1]
        fitting = [
            m
            for m in net.modules()
            if type(m) is kinds
            and m.weight.shape[1] * getattr(m, "groups", 1) == c
            and min(getattr(m, "kernel_size", (1,))) < 4
            and not m._forward_hooks
        ]
        self.layer = fitting[self.step.b % len(fitting)] if fitting else layer_for(self.kind, c, c, self.step)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind in GRIDS:
            reach = [(k - 1 + 1) for k in self.layer.kernel_size]
            x = F.pad(x, [1 if max(reach) > 1 else 0] * (2 * GRIDS[self.kind]))
            return self.layer(x)
        if self.flag == 5:
            return F.linear(x, self.layer.weight) + self.layer(x)
        return self.layer(x)


class Tied(Op):
    """Two layers around one weight, and a function that uses its transpose."""

    takes = ("vec", "tok")

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.one, self.two = nn.Linear(c, c), nn.Linear(c, c, bias=False)
        if self.flag % 2:
            self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(torch.tanh(self.one(x)))
        return F.linear(y, self.one.weight.t()) if self.flag < 4 else y


class Residual(Op):
    """A residual around some layers; added in place or not."""

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        w = self.step.width
        self.body = nn.Sequential(
            layer_for(self.kind, c, w, self.step), nn.ReLU(inplace=True), layer_for(self.kind, w, c, self.step)
        )
        self.scale = nn.Parameter(torch.full((), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.flag == 0:
            y += x
            return y
        if self.flag == 1:
            return y.add_(x).relu_()
        if self.flag == 2:
            return y.mul_(self.scale) + x
        if self.flag == 3:
            out = y
            out += x
            return y * 2
        return x + self.scale * y


class Views(Op):
    """A layer's result written to through views and slices."""

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.layer = layer_for(self.kind, c, 4, self.step)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.flag == 0:
            y[:, :1] *= 2
        elif self.flag == 1:
            y[:, 1:] = y[:, 1:].tanh()
        elif self.flag == 2:
            a, b = y.chunk(2, 1 if self.kind in GRIDS else -1)
            return a * torch.sigmoid(b)
        elif self.flag == 3:
            y.flatten(1).clamp_(-1, 1)
        elif self.flag == 4:
            out = torch.zeros_like(y)
            out[..., :1] = y[..., :1]
            return out + y
        else:
            y = y.contiguous().view(y.shape[0], -1).tanh_().view_as(y)
        return y


class Join(Op):
    """Two values, concatenated, added, or one scaling the other."""

    second = ("same",)

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        assert y is not None
        self.project = layer_for(self.kind, channels(self.kind, y), c, self.step)
        self.after = layer_for(self.kind, 2 * c, self.step.width, self.step)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.project(y)
        if self.kind in GRIDS:
            y = F.interpolate(y, size=x.shape[2:])
        elif self.kind == "tok":
            y = y.mean(1, keepdim=True).expand_as(x)
        if self.flag % 3 == 0:
            return self.after(torch.cat([x, y], 1 if self.kind in GRIDS else -1))
        return x + y if self.flag % 3 == 1 else x * torch.sigmoid(y)


class Film(Op):
    """A vector scales and shifts the channels of a map."""

    takes = ("seq", "map", "vol")
    second = ("vec",)

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        assert y is not None
        self.film = nn.Linear(y.shape[1], 2 * c)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        scale, shift = self.film(y).reshape(y.shape[0], -1, *[1] * GRIDS[self.kind]).chunk(2, 1)
        return x * torch.tanh(scale) + shift
