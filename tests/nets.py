"""Small networks, one per layer kind or way of calling it, and helpers to compare modules."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from aimgraph.config import AimConfig
from aimgraph.emit.module import AimModule
from aimgraph.errors import PlanError
from aimgraph.passes import FindSites, PlaceUpdates
from aimgraph.runtime.layers import split_weight
from aimgraph.tracing.frontend import build_program

FUZZ = int(os.environ.get("FUZZ", "1"))
"""How many times as many random examples to draw."""


@dataclass(frozen=True)
class Net:
    """A network to build and the shape of its input."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


class Tokens(nn.Module):
    """Linear layers over [B, T, F], then a head over [B, F]."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(x)).mean(1))


class ChannelsLast(nn.Module):
    """A convolution, then linear layers over a channels-last map, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 10), nn.Linear(10, 6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1)))))
        return self.head(x + y.permute(0, 3, 1, 2))


class SequenceFirst(nn.Module):
    """Linear layers over [T, B, F]: the batch is the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(5, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.mix(x.transpose(0, 1)))).transpose(0, 1)


class Windows(nn.Module):
    """Linear layers over windows: the batch of the layer is four times the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 5, 1), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        y = self.stem(x).reshape(b, 5, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1)
        y = self.mix(y.reshape(b * 4, h // 2 * (w // 2), 5))
        return self.head(y.reshape(b, -1, 5).mean(1))


class PositionNet(nn.Module):
    """A linear layer over positions alone: its input does not depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(-1, 1, 12).reshape(4, 3))
        self.position, self.mix, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.mix(x))
        return self.head((y + self.position(self.table)).mean(1))


class Shared(nn.Module):
    """One convolution called twice, at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return self.head(torch.relu(self.conv(F.max_pool2d(x, 2))))


class Ranks(nn.Module):
    """One linear layer called on tokens and on plain features: two read weights."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(torch.tanh(self.mix(x)).mean(1)))


class OutputSize(nn.Module):
    """A transposed convolution whose output size is given at the call."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(x)), output_size=x.shape[-2:])


class TwoInputs(nn.Module):
    """Keyword input, dict output, and an argument left at its default."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.head = nn.Conv2d(3, 4, 3), nn.Linear(5, 4), nn.Linear(8, 2)

    def forward(
        self, image: Tensor, *, vector: Tensor, scale: float = 2.0, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        y = torch.cat([self.image(image).mean((2, 3)), self.vector(vector)], 1)
        return {"logits": self.head(y) * scale, "features": y if mask is None else y * mask}


class FunctionalDropout(nn.Module):
    """`F.dropout` with the module's own flag: train and eval graphs differ."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)), inplace=True).mean((2, 3))
        return self.head(F.dropout(y, 0.4, self.training))


class DropPath(nn.Module):
    """Drops a sample's residual branch at random in train mode."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.dim() - 1), dtype=x.dtype, device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class Residual(nn.Module):
    """Convolutions with batch norm, in-place ReLU, dropout, drop path and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)
        )
        self.path = DropPath(0.5)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.path(self.block(x))
        alias = y
        y += x
        x = torch.relu_(self.down(alias))
        return self.head(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class SamePadding(nn.Conv2d):
    """A subclass with a forward of its own: pads by its own rule, then convolves."""

    def forward(self, x: Tensor) -> Tensor:
        needed = [
            max((-(-size // s) - 1) * s + k - size, 0)
            for size, s, k in zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)
        ]
        top, left = needed[0] // 2, needed[1] // 2
        x = F.pad(x, (left, needed[1] - left, top, needed[0] - top))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """A subclass that transforms its weight first."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Functions(nn.Module):
    """Calls functions with parameters, with keywords, and one module twice."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 2, 3, 3) * 0.3)
        self.up = nn.Parameter(torch.randn(6, 2, 2, 2) * 0.3)
        self.bias = nn.Parameter(torch.randn(4))
        self.mix = Mix(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, weight=self.kernel, padding=(1, 1), groups=2)
        y = F.conv_transpose2d(y.tanh(), self.up, self.bias, 2, groups=2)
        return self.mix(self.mix(y))


class Mix(nn.Module):
    """A linear layer over the last axis that is no `nn.Linear`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.movedim(1, -1), self.weight.softmax(-1)).movedim(-1, 1)


class Attention(nn.Module):
    """torch's own attention, which calls functions with its layers' weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y + self.cross(y, x[..., :4], x[..., 4:], need_weights=True)[0]


class SampleKernels(nn.Module):
    """A convolution with a kernel per sample: the batch is folded into its groups."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(4, 3)
        self.kernels = nn.Parameter(torch.randn(3, 6 * 2 * 9) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        kernels = self.route(x.mean((2, 3))).softmax(-1) @ self.kernels
        folded = x.reshape(1, batch * channels, height, width)
        y = F.conv2d(folded, kernels.reshape(batch * 6, 2, 3, 3), padding=1, groups=2 * batch)
        return y.reshape(batch, 6, height, width)


class Activated(nn.Conv2d):
    """A subclass that is not affine: an activation follows inside."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


def _convs(kind: type[nn.Module], **options: object) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(kind(4, 6, 3, **options), nn.Tanh(), kind(6, 4, 3, **options))  # type: ignore[call-arg]


NETS: dict[str, Net] = {
    "conv1d": Net(_convs(nn.Conv1d, padding=1), (2, 4, 9)),
    "conv2d": Net(_convs(nn.Conv2d), (2, 4, 8, 9)),
    "conv3d": Net(_convs(nn.Conv3d, padding=1), (2, 4, 3, 4, 5)),
    "strided": Net(_convs(nn.Conv2d, stride=2, padding=1), (2, 4, 9, 8)),
    "dilated": Net(_convs(nn.Conv2d, dilation=2, padding=2), (2, 4, 7, 8)),
    "same": Net(_convs(nn.Conv2d, padding="same"), (2, 4, 6, 7)),
    "reflect": Net(_convs(nn.Conv2d, padding=1, padding_mode="reflect"), (2, 4, 6, 7)),
    "replicate": Net(_convs(nn.Conv2d, padding=1, padding_mode="replicate"), (2, 4, 6, 7)),
    "circular": Net(_convs(nn.Conv2d, padding="same", padding_mode="circular"), (2, 4, 6, 7)),
    "grouped": Net(_convs(nn.Conv2d, groups=2, padding=1), (2, 4, 6, 7)),
    "grouped1d": Net(_convs(nn.Conv1d, groups=2), (2, 4, 9)),
    "reflect1d": Net(_convs(nn.Conv1d, padding=2, padding_mode="reflect"), (2, 4, 7)),
    "circular3d": Net(_convs(nn.Conv3d, padding=1, padding_mode="circular"), (2, 4, 3, 3, 4)),
    "grouped3d": Net(_convs(nn.Conv3d, groups=2, padding=1), (2, 4, 3, 3, 4)),
    "transposed_grouped1d": Net(_convs(nn.ConvTranspose1d, groups=2, stride=2, output_padding=1), (2, 4, 5)),
    "transposed_grouped3d": Net(_convs(nn.ConvTranspose3d, groups=2), (2, 4, 2, 3, 3)),
    "depthwise": Net(
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)), (2, 4, 8, 8)
    ),
    "transposed1d": Net(_convs(nn.ConvTranspose1d, stride=2), (2, 4, 5)),
    "transposed2d": Net(_convs(nn.ConvTranspose2d, stride=2, padding=1, output_padding=1), (2, 4, 4, 3)),
    "transposed3d": Net(_convs(nn.ConvTranspose3d), (2, 4, 2, 3, 3)),
    "transposed_grouped": Net(_convs(nn.ConvTranspose2d, groups=2, dilation=2), (2, 4, 4, 3)),
    "output_size": Net(OutputSize, (2, 3, 7, 6)),
    "linear": Net(lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3, bias=False)), (2, 5)),
    "tokens": Net(Tokens, (2, 7, 6)),
    "channels_last": Net(ChannelsLast, (2, 3, 5, 6)),
    "sequence_first": Net(SequenceFirst, (2, 6, 5)),
    "windows": Net(Windows, (2, 3, 4, 4)),
    "position": Net(PositionNet, (2, 4, 6)),
    "shared": Net(Shared, (2, 4, 8, 6)),
    "ranks": Net(Ranks, (2, 5, 6)),
    "same_padding_class": Net(
        lambda: nn.Sequential(SamePadding(3, 4, 3, stride=2), nn.ReLU(), SamePadding(4, 4, 5)), (2, 3, 7, 8)
    ),
    "standardised": Net(
        lambda: nn.Sequential(Standardised(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)), (2, 3, 6, 6)
    ),
    "weight_norm": Net(
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 2, 1)),
        (2, 3, 6, 6),
    ),
    "hooked_weight_norm": Net(
        lambda: nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.utils.weight_norm(nn.Conv2d(4, 2, 1))),
        (2, 3, 6, 6),
    ),
    "hooked_spectral_norm": Net(
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 2, 1)), (2, 3, 6, 6)
    ),
    "pruned": Net(
        lambda: nn.Sequential(prune.l1_unstructured(nn.Linear(5, 4), "weight", 0.5), nn.ReLU(), nn.Linear(4, 2)),
        (2, 5),
    ),
    "activated": Net(lambda: nn.Sequential(Activated(3, 4, 3), nn.Conv2d(4, 2, 1)), (2, 3, 6, 6)),
    "functions": Net(Functions, (2, 4, 6, 5)),
    "attention": Net(Attention, (2, 5, 8)),
    "sample_kernels": Net(SampleKernels, (2, 4, 5, 6)),
    "functional_dropout": Net(FunctionalDropout, (2, 3, 6, 6)),
    "residual": Net(Residual, (2, 3, 8, 8)),
}
"""Every layer kind, and every way of calling one."""


def build(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The network called `name` and an input for it, both reproducible."""
    net = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = net.build().to(dtype)
        return model, torch.randn(net.shape, dtype=dtype)


def updates_for(base: nn.Module, x: Tensor) -> dict[str, object]:
    """``updates="stages"``, or the output of the first layer where no stage has an end."""
    program = build_program(base, ((x,), {}), (AimConfig(updates="stages"),), share=False)
    program = FindSites().run(program).program
    try:
        PlaceUpdates().run(program)
    except PlanError:
        first = next(path for path, module in base.named_modules() if path and not isinstance(module, nn.Sequential))
        return {"updates": (first,)}
    return {"updates": "stages"}


def randomise(aim: nn.Module, seed: int = 1, scale: float = 0.3) -> nn.Module:
    """Draw every parameter under ``aim``, read weights included, from N(0, scale^2)."""
    generator = torch.Generator().manual_seed(seed)
    buffers = {name for name, _ in aim.named_buffers()}
    state = aim.state_dict()
    for name in sorted(state):
        if name.startswith("aim.") and name not in buffers:
            draw = torch.randn(state[name].shape, generator=generator, dtype=torch.float64)
            state[name] = (draw * scale).to(state[name].dtype)
    aim.load_state_dict(state)
    return aim


def run(module: nn.Module, *args: object, seed: int = 0, **kwargs: object) -> object:
    """Call `module` under a fixed random state."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return module(*args, **kwargs)


def gradients(aim: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients of the input, the base and the memory, a widened weight split into its parts."""
    x = x.clone().requires_grad_()
    aim.zero_grad()
    output = run(aim, x)
    assert isinstance(output, Tensor)
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).reshape(output.shape)
    (output * weights).sum().backward()
    found = {name: p.grad for name, p in aim.named_parameters() if p.grad is not None}
    if isinstance(aim, AimModule):
        for site in aim._record.concat_sites:
            layer = aim.get_submodule(site.site)
            base, reads = split_weight(layer, found[f"{site.site}.weight"], list(site.channels))  # type: ignore[arg-type]
            found |= {f"{site.site}.weight": base} | dict(zip(site.keys, reads, strict=True))
    assert x.grad is not None
    return found | {"input": x.grad}


def apart(folded: nn.Module, aim: nn.Module, x: Tensor) -> float:
    """Largest difference over the largest output."""
    expected = run(aim, x)
    return float(((run(folded, x) - expected).abs().max() / expected.abs().max()).detach())
