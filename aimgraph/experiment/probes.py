"""What a trained memory is for, probed: it is changed in some way, and the score on validation examples looked at.

    y = layer(x) + s * layer_m(m; Wm)

The values m are replaced where the source gives them; the strength s is a factor on the read weights, in which the term
is linear, whatever has written the memory. Each probe begins with the memory as it was trained.

| probe | what is measured |
|---|---|
| ``plain`` | the trained module |
| ``reset`` | with the values from before the training |
| ``mean`` | each channel has its mean at all places; a memory of shape (N,) the mean of all |
| ``shuffled`` | the places are permuted, all channels of a place together |
| ``swapped`` | with the values that the next seed draws |
| ``strength S`` | what reads add is multiplied by S |
| ``state on``, ``state off`` | with what was carried, as ``plain``, and without, where nothing is carried on either |
| ``batch 1`` | one example at a time |
| ``permuted`` | the examples in another order, where a state is carried: it must not tell of the examples before |
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Generator, Tensor, nn

from aimgraph.errors import ConfigError
from aimgraph.experiment.changes import Trained, kept, memories_of, replaced_values, scaled_reads, without_state
from aimgraph.reproducible import seeded

Score: TypeAlias = Callable[[nn.Module, int | None, Tensor | None], float]
"""Measures a module, in batches of that many examples (None: the usual), and in that order (None: as they are)."""

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.25, 1.5)
"""Factors on what reads add; 1 is the trained module."""


@dataclass(frozen=True)
class _Probe:
    """One probe.

    Attributes:
        name: Of it.
        change: What is done while it is measured.
        batch: Examples at a time, or None.
        order: Of the examples, [n], or None.
    """

    name: str
    change: Callable[[], AbstractContextManager[None]] = nullcontext
    batch: int | None = None
    order: Tensor | None = None


def probed(
    module: nn.Module,
    examples: Sized,
    score: Score,
    initial: Mapping[str, Tensor] | None = None,
    also: Sequence[float] = (),
) -> dict[str, float]:
    """Probe the memories of a trained module, all of them together.

    Parameters, buffers, modes and random states are as before afterwards, bit for bit, whatever `score` does or raises.
    Each probe is one pass over the examples: give few hundred. One that would change nothing is left out, as
    ``shuffled`` is for a memory of one place, and ``swapped`` where nothing draws the values.

    Args:
        module: It is transformed, or has transformed parts; one without a memory has no probes.
        examples: What `score` measures with; their number counts.
        score: Called as ``score(module, batch, order)`` for each probe, with the same random states.
        initial: Name in the module -> tensor before the training, as its state dict had it, for ``reset``.
        also: Strengths besides `STRENGTHS`.

    Returns:
        Probe -> score; empty for a module without a memory.
    """
    memories = memories_of(module)
    found: dict[str, float] = {}
    for probe in _probes(module, memories, len(examples), initial or {}, also) if memories else ():
        with seeded(), kept(module), probe.change():
            found[probe.name] = float(score(module, probe.batch, probe.order))
    if memories:
        found["strength 1"] = found["plain"]
    if "state off" in found:
        found["state on"] = found["plain"]
    return found


def _probes(
    module: nn.Module, memories: list[Trained], examples: int, initial: Mapping[str, Tensor], also: Sequence[float]
) -> Iterator[_Probe]:
    yield _Probe("plain")
    for name, change in _OTHER_VALUES.items():
        values = [change(memory, initial) for memory in memories]
        if any(not torch.equal(one, memory.values()) for one, memory in zip(values, memories, strict=True)):
            yield _Probe(name, partial(replaced_values, memories, values))
    for strength in sorted({*STRENGTHS, *also} - {1.0}):
        yield _Probe(f"strength {strength:g}", partial(scaled_reads, module, memories, strength))
    yield _Probe("batch 1", batch=1)
    if any(memory.carry is not None for memory in memories):
        yield _Probe("state off", partial(without_state, module, memories))
        yield _Probe("permuted", order=torch.randperm(examples, generator=Generator().manual_seed(_SEED)))


_SEED = 0
"""Of the orders of places and examples."""


def _mean(memory: Trained, _: Mapping[str, Tensor]) -> Tensor:
    places = memory.in_places(memory.values())
    return places.mean(0, keepdim=True).expand_as(places).reshape(1, -1)


def _shuffled(memory: Trained, _: Mapping[str, Tensor]) -> Tensor:
    places = memory.in_places(memory.values())
    order = torch.randperm(len(places), generator=Generator().manual_seed(_SEED))
    return places[order.to(places.device)].reshape(1, -1)


def _swapped(memory: Trained, _: Mapping[str, Tensor]) -> Tensor:
    try:
        return memory.drawn_again()
    except ConfigError:  # a source of the user's own that nothing draws: it keeps its values
        return memory.values()


_OTHER_VALUES: dict[str, Callable[[Trained, Mapping[str, Tensor]], Tensor]] = {
    "reset": Trained.values_of,
    "mean": _mean,
    "shuffled": _shuffled,
    "swapped": _swapped,
}
"""Probe -> the values, [1, N], that it gives a memory, from the memory and the state before the training."""
