"""Random states that are put back, streams of one's own, and attention as plain operations."""

import hashlib
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def _generators() -> list[tuple[str, Callable[[], Any], Callable[[Any], None]]]:
    """Name, getter and setter of the random states that no graph can show."""
    found: list[tuple[str, Callable[[], Any], Callable[[Any], None]]] = [("random", random.getstate, random.setstate)]
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        found.append(("numpy.random", lambda: numpy.random.get_state(legacy=False), numpy.random.set_state))
    return found


@contextmanager
def kept_python_randomness() -> Iterator[list[str]]:
    """Put Python's and numpy's random states back; the list names those afterwards that were drawn from."""
    before = [(name, get, put, get()) for name, get, put in _generators()]
    drawn: list[str] = []
    try:
        yield drawn
    finally:
        for name, get, put, state in before:
            if _plain(get()) != _plain(state):
                put(state)
                drawn.append(name)


@contextmanager
def kept_randomness() -> Iterator[list[str]]:
    """Put every random state back; the list names those afterwards that no graph can show."""
    with kept_python_randomness() as drawn, torch.random.fork_rng(devices=[]):
        yield drawn


def _plain(state: Any) -> Any:
    """A random state with bytes in place of numpy's arrays, which can't be compared as a whole."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return state.tobytes() if hasattr(state, "tobytes") else state


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Draw the same from torch, Python and numpy every time, and put all random states back."""
    with kept_python_randomness(), torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(seed)
        yield


@contextmanager
def own_stream(name: str) -> Iterator[None]:
    """Random numbers that depend on `name` alone; the global state is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed_of(name))
        yield


def generator_of(name: str) -> torch.Generator:
    """A generator on the CPU whose numbers depend on `name` alone."""
    return torch.Generator("cpu").manual_seed(_seed_of(name))


def uniform(shape: Iterable[int], bound: float, generator: torch.Generator | None = None) -> Tensor:
    """Numbers from U(-bound, bound), float32, the same on every processor.

    ``uniform_(-bound, bound)`` is not: where a processor has one, it computes u * 2 bound - bound in one instruction,
    which rounds once. Here u - 1/2 is exact, and the product is all that is rounded.
    """
    numbers = torch.empty(tuple(shape), dtype=torch.float32, device="cpu").uniform_(generator=generator)
    return numbers.sub_(0.5).mul_(2 * bound)


def _seed_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep torch's attention from its fused inference path, which hides its linear layers and rounds differently."""
    backend: Any = torch.backends.mha
    before = backend.get_fastpath_enabled()
    backend.set_fastpath_enabled(False)
    try:
        yield
    finally:
        backend.set_fastpath_enabled(before)


@contextmanager
def deterministic() -> Iterator[None]:
    """Let sums be added up in one order: some backward passes do that in parallel, and differ from run to run."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = fill


def is_inexact(tensor: Tensor) -> bool:
    """Whether a tensor holds floating-point numbers, real or complex: any will do, other than of an index or a mask."""
    return tensor.is_floating_point() or tensor.is_complex()


def drawn_like(tensor: Tensor, shape: Iterable[int], generator: torch.Generator) -> Tensor:
    """Floating-point values of this shape from N(0, 1), real or complex, on the device and of the dtype of `tensor`."""
    kind = torch.complex64 if tensor.is_complex() else torch.float32
    return torch.randn(tuple(shape), generator=generator, dtype=kind).to(device=tensor.device, dtype=tensor.dtype)


def has_numbers(tensor: Tensor) -> bool:
    """Whether the numbers of an example input say more than its shape and type do.

    Those of the meta device have none, and floating-point ones that are all the same, or not finite, are placeholders.
    """
    if tensor.is_meta or tensor.is_complex() or not tensor.numel():
        return False
    if not tensor.is_floating_point():
        return True
    least, most = tensor.detach().double().aminmax()  # which not every type has
    return bool(least < most) and bool((most - least).isfinite())
