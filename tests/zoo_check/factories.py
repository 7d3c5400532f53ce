"""Models that a zoo check meets: good ones, and ones that cost it a process."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MARKER = "AIMGRAPH_TEST_MARKER"
"""Names the file that says which processes were there before."""


def small(channels: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2)
    )


class Partly(nn.Module):
    """Four layers, of which three are called, and a functional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head, self.unused = nn.Linear(4, 2), nn.Linear(4, 5)
        self.kernel = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(self.stem(x)))
        return self.head(F.conv2d(x, self.kernel).mean((2, 3)))


class Undecided(nn.Module):
    """Cannot be built without values: its width depends on them."""

    def __init__(self) -> None:
        super().__init__()
        width = int(torch.ones(3).sum())
        self.layer = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class ByValue(nn.Module):
    """Decides by a value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x if x.sum() > 1e9 else -x).mean((2, 3)))


def positions(side: int = 128) -> nn.Module:
    """Takes images of one size."""
    return nn.Sequential(nn.Conv2d(3, 1, 8, 8), nn.Flatten(), nn.Linear((side // 8) ** 2, 4))


class Words(nn.Module):
    """Takes numbers of words, and a mask by keyword."""

    def __init__(self, words: int = 50) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(words, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, *, mask: Tensor) -> Tensor:
        return self.head(self.embed(tokens).masked_fill(mask[..., None], 0.0))


class Outer(nn.Module):
    """A part to transform in a model that can't run as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = small()

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def plain() -> nn.Module:
    return nn.ReLU()


def exits() -> nn.Module:
    os._exit(7)


def segfaults() -> nn.Module:
    os.kill(os.getpid(), signal.SIGSEGV)
    return small()


def sleeps() -> nn.Module:
    time.sleep(300)
    return small()


def hungry() -> nn.Module:
    assert bytearray(2 << 30)
    return small()


def chatty() -> nn.Module:
    print("I print where results go")
    os.write(1, b"and so do I\n")
    return small()


def loses_its_worker() -> nn.Module:
    """The first time, take down the process that waits for the row: the parent of this one's parent."""
    marker = Path(os.environ[MARKER])
    with marker.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if len(marker.read_text().split()) == 1:
        status = Path(f"/proc/{os.getppid()}/status").read_text()
        worker = int(next(line.split()[1] for line in status.splitlines() if line.startswith("PPid")))
        os.kill(worker, signal.SIGKILL)
        time.sleep(300)
    return small()


class Limited(nn.Module):
    """Runs at one size only, not under autocast, and does not use all that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.unused = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu") or x.shape[-1] != 8:
            raise RuntimeError("not this way")
        self.unused(x)
        return self.mix(x)


class Spectral(nn.Module):
    """Mixes frequencies with complex weights, and gives complex numbers out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix = nn.Linear(8, 8), nn.Linear(5, 5, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.fft.rfft(self.first(x)))


class _Attends(nn.Module):
    """[B, N, 8]: attention by hand, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 16)
        self.drop, self.out = nn.Dropout(0.5), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.q(x) @ self.k(x).transpose(-2, -1)).softmax(-1)
        return torch.as_tensor(self.out(self.drop(weights @ self.v(x))))


def attends() -> nn.Module:
    return _Attends()


def softest() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 4), nn.Softmax(-1), nn.Linear(4, 2))
