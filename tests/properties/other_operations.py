"""Steps of random networks beside plain layers: attention, norms, modes, contexts, hooks, what no graph can hold."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.nets import Activated, SamePadding, Standardised
from tests.properties.recipes import GRIDS, Op, layer_for


class Attend(Op):
    """torch's attention over tokens, self or cross."""

    takes = ("tok",)
    second = ("tok",)

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        assert y is not None
        heads = 2 if c % 2 == 0 else 1
        size = y.shape[2]
        options: dict[str, Any] = {} if self.flag % 2 else {"kdim": size, "vdim": size}
        first = self.flag < 3
        if self.flag == 5:
            self.layer: nn.Module = nn.TransformerEncoderLayer(c, heads, self.step.width, 0.2, batch_first=True)
        else:
            self.layer = nn.MultiheadAttention(c, heads, batch_first=first, bias=self.step.a % 2 == 0, **options)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.flag == 5:
            return self.layer(x)
        if self.flag % 2:
            y = x
        if self.flag >= 3:
            x, y = x.transpose(0, 1), y.transpose(0, 1)
        out = self.layer(x, y, y, need_weights=self.flag == 0)[0]
        return x + out if self.flag < 3 else out.transpose(0, 1)


class OwnAttention(Op):
    """Attention written by hand: one linear layer for all three, heads, scaled dot product."""

    takes = ("tok",)

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.qkv, self.proj = nn.Linear(c, 12), nn.Linear(4, c)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        if self.flag % 2:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(b, t, 4))


class Activation(Op):
    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        made = [torch.tanh, F.gelu, lambda v: self.act(v.clone()), torch.sigmoid, lambda v: v.softmax(1), F.silu]
        return made[self.flag](x)


class LayerActivation(Op):
    """A layer whose result is overwritten by an activation."""

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.layer, self.act = layer_for(self.kind, c, self.step.width, self.step), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        acts = [self.act, torch.relu_, lambda v: F.relu(v, inplace=True), Tensor.relu_, Tensor.tanh_, F.leaky_relu_]
        return acts[self.flag](y)


class Norm(Op):
    """Norms without batch statistics."""

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.norm = nn.GroupNorm(1, c) if self.kind in GRIDS else nn.LayerNorm(c)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class BatchNorm(Op):
    """A layer, then batch norm."""

    takes = ("vec", "seq", "map")
    batch_norm = True

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.layer = layer_for(self.kind, c, self.step.width, self.step)
        kind = nn.BatchNorm2d if self.kind == "map" else nn.BatchNorm1d
        self.norm = kind(self.step.width, momentum=None if self.flag == 1 else 0.1, affine=self.flag != 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


class Pool(Op):
    takes = ("seq", "map")

    def forward(self, x: Tensor) -> Tensor:
        rank = GRIDS[self.kind] - 1
        if self.flag % 3 == 0:
            return (F.max_pool1d, F.max_pool2d)[rank](x, 2, ceil_mode=True)
        if self.flag % 3 == 1:
            return (F.avg_pool1d, F.avg_pool2d)[rank](x, 3, 2, 1)
        return F.interpolate(x, scale_factor=2)


class Convert(Op):
    """Another layout of the same features."""

    def kind_given(self) -> str:
        if self.kind == "vec":
            return "tok" if self.flag % 2 else "map"
        if self.kind == "tok":
            return "seq" if self.flag % 2 else "vec"
        if self.kind == "seq":
            return ("tok", "map", "vec")[self.flag % 3]
        return ("tok", "seq", "vec")[self.flag % 3]

    def forward(self, x: Tensor) -> Tensor:
        give = self.kind_given()
        if self.kind == "vec":
            return x.unsqueeze(1) if give == "tok" else x[:, :, None, None]
        if self.kind == "tok":
            return x.transpose(1, 2) if give == "seq" else x.mean(dim=1)
        if give == "tok":
            return x.flatten(2).transpose(1, 2)
        if give == "map":
            return x.unsqueeze(2)
        return x.flatten(2) if give == "seq" else x.flatten(2).mean(-1)


class Dropout(Op):
    """Dropout in every spelling."""

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.layer, self.drop = layer_for(self.kind, c, c, self.step), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.flag % 3 == 0:
            return F.dropout(y, 0.4, self.training)
        if self.flag % 3 == 1:
            return self.drop(y)
        if self.training and self.flag == 2:
            y = y * (torch.rand(y.shape[0], *[1] * (y.dim() - 1), dtype=y.dtype) > 0.3)
        elif self.training:
            y = y + torch.randn_like(y)
        return y


class Modes(Op):
    """Layers that only run in one mode, or in another order."""

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.one, self.two = layer_for(self.kind, c, c, self.step), layer_for(self.kind, c, c, self.step)

    def forward(self, x: Tensor) -> Tensor:
        if self.flag % 3 == 0:
            return self.one(x) if self.training else self.two(x)
        if self.flag % 3 == 1:
            y = self.one(x)
            return self.two(y) if self.training else y
        return self.two(self.one(x)) if self.training else self.one(self.two(x))


class NoGrad(Op):
    """A region without gradients, as a context or a decorator, or a detached branch."""

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.layer = layer_for(self.kind, c, c, self.step)
        self.frozen = layer_for(self.kind, c, c, self.step).requires_grad_(self.flag % 2 == 0)

    @torch.no_grad()
    def target(self, x: Tensor) -> Tensor:
        return self.frozen(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.flag < 2:
            with torch.no_grad():
                y = self.frozen(self.layer(x))
        elif self.flag == 2:
            y = self.target(x)
        elif self.flag == 3:
            with torch.no_grad():
                y = self.layer(x)
                with torch.enable_grad():
                    y = y + self.frozen(x)
        elif self.flag == 4:
            y = self.frozen(x).detach()
        else:
            with torch.set_grad_enabled(self.training):
                y = self.frozen(x)
        return self.layer(x) + y


class Sizes(Op):
    """Control flow over shapes."""

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.layers = nn.ModuleDict({n: layer_for(self.kind, c, c, self.step) for n in ("small", "large")})

    def forward(self, x: Tensor) -> Tensor:
        small, large = self.layers["small"], self.layers["large"]
        size = x.shape[-1]
        if self.flag % 3 == 0:
            return small(x) if size < 5 else large(x)
        if self.flag % 3 == 1:
            for _ in range(min(x.shape[1] // 2, 2)):
                x = torch.tanh(large(x))
            return x
        if len(x.shape) == 4 and x.size(2) % 2:
            x = F.pad(x, (0, 1, 0, 1))
        return torch.tanh(small(x)) if x.dim() > 2 and int(x.shape[2]) in (3, 5) else large(x)


class Unused(Op):
    """Layers that nobody calls, beside one that is."""

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.used = layer_for(self.kind, c, c, self.step)
        self.never = nn.ModuleList([layer_for(self.kind, c, c, self.step), nn.Conv2d(2, 2, 1)])

    def forward(self, x: Tensor) -> Tensor:
        dead = self.used(x * 2)
        if self.flag > 3:
            del dead
        return self.used(x)


class Custom(Op):
    """Layers with a forward of their own."""

    takes = ("map",)

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        s = self.step
        if self.flag % 4 == 3:
            self.layer: nn.Module = nn.utils.parametrizations.weight_norm(nn.Conv2d(c, s.width, 3, padding=1))
            self.pickles = False
        else:
            kind = (SamePadding, Standardised, Activated)[self.flag % 4]
            self.layer = kind(c, s.width, 3, padding=0 if kind is SamePadding else 1)
        if isinstance(self.layer, Activated):
            self.unread = ("layer",)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Checkpointed(Op):
    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.body = nn.Sequential(layer_for(self.kind, c, c, self.step), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.body, x, use_reentrant=False)


class Products(Op):
    """Products with parameters that are no calls of a layer."""

    takes = ("vec", "tok")

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.weight = nn.Parameter(torch.randn(c, self.step.width) * 0.4)
        self.layer = nn.Linear(self.step.width, self.step.width)

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight if self.flag % 2 else torch.einsum("b...c,cd->b...d", x, self.weight)
        return self.layer(y)


class Positions(Op):
    """A layer over a table: its input does not depend on the batch."""

    takes = ("tok",)

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.register_buffer("table", torch.linspace(-1, 1, 3 * x.shape[1]).reshape(x.shape[1], 3))
        self.position = nn.Linear(3, c)

    def forward(self, x: Tensor) -> Tensor:
        table = self.table.unsqueeze(0) if self.flag % 3 == 0 else self.table
        if self.flag % 3 == 1:
            table = table.expand(x.shape[0], -1, -1)
        return x + self.position(table)


class Recurrent(Op):
    takes = ("tok",)

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.cell, self.after = nn.GRU(c, 3, batch_first=True), nn.Linear(3, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.cell(x)[0])


class Vector(Op):
    """A weight without output channels."""

    takes = ("tok",)

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.weight = nn.Parameter(torch.randn(c) * 0.4)
        self.unread = ("linear_0",)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(F.linear(x, self.weight)).unsqueeze(-1)


class Hooked(Op):
    """A layer with a forward hook."""

    def make(self, c: int, x: Tensor, y: Tensor | None, net: nn.Module) -> None:
        self.layer = layer_for(self.kind, c, c, self.step)
        if self.flag % 2:
            self.layer.register_forward_pre_hook(double_first)
        else:
            self.layer.register_forward_hook(double_output)
            self.unread = ("layer",)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def double_first(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0] * 2, *args[1:])


def double_output(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
    return output * 2
