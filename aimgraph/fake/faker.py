"""Copies of a module around fake tensors, any number of them around the same ones."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import OWN, USUAL, copy_module
from aimgraph.fake.leftovers import Outside
from aimgraph.fake.operations import Recorder
from aimgraph.fake.outcomes import Derived
from aimgraph.fake.tensors import GIVEN, faked
from aimgraph.reproducible import drawn_like, has_numbers, is_inexact, kept_python_randomness
from aimgraph.runtime.opaque import base_alone
from aimgraph.torch_private import (
    FakeTensorMode,
    dispatch_modes_disabled,
    tree_leaves,
    tree_map,
    unset_fake_temporarily,
)


class Faker:
    """Makes every parameter and buffer of a module fake once, for any number of copies.

    Args:
        root: The module.
        real: Paths of modules that depend on values: copies of them run on random values instead.
        outside: What is known of the module's classes already.
        grad: Whether copies of it run with gradients recorded, as a forward needs that differentiates.
    """

    def __init__(
        self,
        root: nn.Module,
        real: frozenset[str] = frozenset(),
        outside: Outside | None = None,
        *,
        grad: bool = False,
    ) -> None:
        self.grad = grad
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.root = root
        self.outside = outside or Outside(root)
        self.real = real
        self.derived = Derived()
        self.memo: dict[int, Any] = {}
        self.alive: list[Any] = []  # keeps the identities in the memo from being used again
        self.alive += chain(root.parameters(), root.buffers())
        self.memo |= faked(self.alive, self.mode)
        for tensor in self.alive:
            if not is_inexact(tensor):  # sizes, indices: what takes them asks for values
                setattr(self.memo[id(tensor)], GIVEN, tensor)

    @property
    def tensors(self) -> list[Tensor]:
        """The fake parameters and buffers."""
        return list(self.memo.values())

    def copy(self, *, train: bool) -> nn.Module:
        """A copy of the module around fake tensors, in train or eval mode; the tensors are shared by all copies."""
        with torch.no_grad():
            fake = copy_module(self.root, dict(self.memo)).train(train)
            for path in self.real:
                twin = copy_module(self.root.get_submodule(path)).train(train)
                run_for_real(fake.get_submodule(path), twin, self.mode)
        return fake


_TWIN = "aim_twin"


def run_for_real(fake: nn.Module, twin: nn.Module, mode: FakeTensorMode) -> None:
    """Let `fake` do what `twin` does on real values, and give fake tensors of the same shapes.

    The values are the example's own where it gives them, or, if the module does not run on these, random ones.
    """
    original, kept = twin.forward, _Kept(fake, twin)

    def run(args: Any, kwargs: Any, own: bool) -> Any:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        given = tree_map(lambda leaf: _drawn(leaf, generator, own), (args, kwargs))
        kept.give(generator)
        with base_alone(twin):
            output = original(*given[0], **given[1])
        kept.take()
        return output

    def forward(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily(), kept_python_randomness(), torch.random.fork_rng(devices=[]):
            try:
                output = run(args, kwargs, True)
            except Exception:  # whatever a module raises for numbers that it does not take
                if not any(_is_own_float(leaf) for leaf in tree_leaves((args, kwargs))):
                    raise
                output = run(args, kwargs, False)
        made = tree_map(lambda leaf: mode.from_tensor(leaf.detach()) if isinstance(leaf, Tensor) else leaf, output)
        if Recorder.active:
            with unset_fake_temporarily(), dispatch_modes_disabled():
                Recorder.active[-1].ran((args, kwargs), output, made)
        return made

    vars(fake)["forward"] = forward
    vars(fake)[_TWIN] = (twin,)


class _Kept:
    """Numbers, tensors and containers of these that a module and the one that runs in its place keep as attributes.

    What surrounds the module may look at them, and set them.

    Args:
        fake: The module.
        twin: What runs.
    """

    def __init__(self, fake: nn.Module, twin: nn.Module) -> None:
        others = dict(twin.named_modules())
        pairs = [(part, others[path]) for path, part in fake.named_modules() if path in others]
        self.pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [(a.__dict__, b.__dict__) for a, b in pairs]
        for outer, inner in self.pairs:
            inner |= {key: outer[key] for key in _kept_in(outer) if key in inner and _is_plain(outer[key])}
        self.before = [{key: outer[key] for key in _kept_in(outer)} for outer, _ in self.pairs]

    def give(self, generator: torch.Generator) -> None:
        """Let the twin have what was set on the module since the last call."""
        for (outer, inner), before in zip(self.pairs, self.before, strict=True):
            for key in _kept_in(outer):
                if key not in before or outer[key] is not before[key]:
                    inner[key] = tree_map(partial(_drawn, generator=generator), outer[key])

    def take(self) -> None:
        """Let the module have what the twin has set."""
        for (outer, inner), before in zip(self.pairs, self.before, strict=True):
            outer |= {key: inner[key] for key in _kept_in(inner) if inner[key] is not before.get(key)}
            before |= {key: outer[key] for key in _kept_in(outer)}


def _kept_in(attributes: dict[str, Any]) -> list[str]:
    return [
        key
        for key, value in attributes.items()
        if key not in OWN
        and key not in ("training", "forward", _TWIN)
        and all(type(leaf) in USUAL or isinstance(leaf, Tensor) for leaf in tree_leaves(value))
    ]


def _is_plain(value: Any) -> bool:
    """Whether a list or dict holds no tensor yet: then both may have the same."""
    return type(value) in (list, dict) and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def real_twins(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that run in place of `module` and of what is below it, with their paths below it."""
    for twin in vars(module).get(_TWIN, ()):
        yield from twin.named_modules()


def _is_own_float(leaf: Any) -> bool:
    """Whether a fake tensor stands for floating-point numbers of the example."""
    given = getattr(leaf, GIVEN, None)
    return given is not None and given.is_floating_point() and has_numbers(given)


def _drawn(leaf: Any, generator: torch.Generator, own: bool = True) -> Any:
    """A tensor of values like a fake one, the example's own or random ones; anything else as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    given = getattr(leaf, GIVEN, None)
    if given is not None and (not is_inexact(leaf) or (own and has_numbers(given))):
        return given.clone()
    if is_inexact(leaf):
        return drawn_like(leaf, leaf.shape, generator)
    return torch.zeros(leaf.shape, dtype=leaf.dtype, device=leaf.device)
