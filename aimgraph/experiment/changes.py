"""Changes to a trained memory for the length of a ``with`` block: other values, weaker reads, no carried state."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.compiler.aim_paths import aim_path
from aimgraph.compiler.graph_tools import submodule_at
from aimgraph.copies import copy_module
from aimgraph.emit.module import AimModule
from aimgraph.emit.parts import named_parts
from aimgraph.emit.record import record_of
from aimgraph.emit.set_names import member
from aimgraph.planning.reads import MemoryPlan
from aimgraph.planning.start import start_of
from aimgraph.reproducible import own_stream
from aimgraph.runtime.layers import concat_weight, layer_at, split_weight
from aimgraph.runtime.parts import redraw
from aimgraph.runtime.state import StateCarry


@dataclass(frozen=True)
class Trained:
    """A memory in a model, of the memory set in use.

    Attributes:
        plan: What it is.
        path: Of its source in the model.
        source: Yields its values, [1, N].
        reads: Its read layers.
        carry: What carries it to the next batch, or None.
    """

    plan: MemoryPlan
    path: str
    source: nn.Module
    reads: nn.Module
    carry: StateCarry | None

    @torch.no_grad()
    def values(self) -> Tensor:
        """Its values now, [1, N]."""
        return _given(copy_module(self.source))

    @torch.no_grad()
    def values_of(self, state: Mapping[str, Tensor]) -> Tensor:
        """Its values in a state of the model: name -> tensor; what is not there is as it is now."""
        source = copy_module(self.source)
        for name, tensor in (*source.named_parameters(), *source.named_buffers()):
            if (key := f"{self.path}.{name}") in state:
                tensor.copy_(state[key])
        return _given(source)

    @torch.no_grad()
    def drawn_again(self) -> Tensor:
        """Its values before training after the next seed, [1, N].

        Raises:
            ConfigError: A source of the user's own has parameters that nothing draws.
        """
        config = self.plan.config
        if config.start == "zero_values":
            return torch.zeros_like(self.values())
        source = copy_module(self.source)
        start = start_of(replace(self.plan, config=config.model_copy(update={"seed": config.seed + 1})))
        with torch.device("cpu"), own_stream(f"{start.stream}/source"):
            redraw(source)
        return _given(source)

    def in_places(self, values: Tensor) -> Tensor:
        """Values, [1, N], by place: [places, channels], or [N, 1] for a memory of shape (N,)."""
        return values.reshape(-1, self.plan.shape[-1] if len(self.plan.shape) == 3 else 1)


def _given(source: nn.Module) -> Tensor:
    values: Tensor = source()
    return values.detach()


def memories_of(module: nn.Module) -> list[Trained]:
    """The memories of a model, of all its transformed parts; none where it has none."""
    return [
        _trained(path, part, memory)
        for path, part in named_parts(module).items()
        for memory in record_of(part).plan.memories
    ]


def _trained(path: str, part: AimModule, memory: MemoryPlan) -> Trained:
    chosen = record_of(part).chosen
    source, reads, carry = (member(aim_path(memory.name, name), part, chosen) for name in ("source", "reads", "carry"))
    carried = submodule_at(part, carry)
    return Trained(
        plan=memory,
        path=f"{path}.{source}" if path else source,
        source=part.get_submodule(source),
        reads=part.get_submodule(reads),
        carry=carried if isinstance(carried, StateCarry) else None,
    )


@contextmanager
def kept(module: nn.Module) -> Iterator[None]:
    """Put parameters, buffers and modes back as they are now, bit for bit, whatever is done to them or raised."""
    tensors: list[tuple[dict[str, Any], str, Tensor, Tensor]] = [
        (held, name, tensor, tensor.detach().clone())
        for one in module.modules()
        for held in _tensors(one)
        for name, tensor in held.items()
        if tensor is not None
    ]
    modes = {one: one.training for one in module.modules()}
    try:
        yield
    finally:
        with torch.no_grad():
            for held, name, tensor, before in tensors:
                held[name] = tensor  # a forward may have put another one there
                tensor.copy_(before)
        _put_modes_back(module, modes)


def _tensors(module: nn.Module) -> tuple[dict[str, Any], ...]:
    return module._parameters, module._buffers


def _put_modes_back(module: nn.Module, modes: Mapping[nn.Module, bool]) -> None:
    for one in (module, *named_parts(module).values()):  # these do more than to set flags
        if one.training != modes[one]:
            one.train(modes[one])
    for one, mode in modes.items():
        one.training = mode


@contextmanager
def replaced_values(memories: Sequence[Trained], values: Sequence[Tensor]) -> Iterator[None]:
    """Have sources give other values, [1, N] each."""
    hooks = [
        memory.source.register_forward_hook(lambda _, __, ___, given=given: given)
        for memory, given in zip(memories, values, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def scaled_reads(module: nn.Module, memories: Iterable[Trained], strength: float) -> Iterator[None]:
    """Multiply what all reads add; a read is linear in its weight."""
    with kept(module):
        with torch.no_grad():
            for weight in {one for memory in memories for one in memory.reads.parameters()}:
                weight.mul_(strength)
            for part in named_parts(module).values():
                _scale_concat(part, strength)
        yield


def _scale_concat(part: AimModule, strength: float) -> None:
    """The same for read weights that are part of the weights of layers."""
    for site in record_of(part).concat_sites:
        layer = layer_at(part, site.site)
        own, reads = split_weight(layer, layer.weight, list(site.channels))
        layer.weight.copy_(concat_weight(layer, own, [strength * read for read in reads]))


@contextmanager
def without_state(module: nn.Module, memories: Iterable[Trained]) -> Iterator[None]:
    """Forget what memories carry, and have no forward in eval mode write it."""
    carries = [memory.carry for memory in memories if memory.carry is not None]
    writes = [carry.write_in_eval for carry in carries]
    with kept(module):
        try:
            for carry in carries:
                carry.state.zero_()
                carry.write_in_eval = False
            yield
        finally:
            for carry, before in zip(carries, writes, strict=True):
                carry.write_in_eval = before
