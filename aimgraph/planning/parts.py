"""The source, the read and the update block of one memory while planning: what they hold and what they give.

They are built on torch's meta device, where nothing is allocated; what needs values there is built with them.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from aimgraph.config import AimConfig
from aimgraph.errors import ConfigError
from aimgraph.planning.reads import OwnView
from aimgraph.planning.sites import UpdateSpot
from aimgraph.runtime.parts import factory_of
from aimgraph.runtime.reads.view import ViewSpec, view_of
from aimgraph.runtime.specs import BlockSpec, Factory, MemorySpec, ReadSpec, Role, SourceSpec
from aimgraph.runtime.updates.update import BlockUpdate, update_of

T = TypeVar("T")


class Parts:
    """The factories that a config asks for.

    Args:
        config: Of the memory.

    Raises:
        ConfigError: A name is not registered.
    """

    def __init__(self, config: AimConfig) -> None:
        self.config = config
        self.source = factory_of("source", config.source)
        self.read = factory_of("read", config.read)
        self.block = factory_of("block", config.block)
        self._views: dict[ReadSpec, tuple[ViewSpec, nn.Module | None]] = {}
        if config.shape == "auto" and config.source != "parameter":
            raise ConfigError(f"AimConfig source={config.source!r} needs an explicit shape, e.g. shape=(7, 7, 64)")

    def source_parameters(self, shape: tuple[int, ...]) -> int:
        """How many parameters the source of a memory of this shape has."""
        spec = SourceSpec(shape)
        return self._checked("source", spec, lambda: _source_parameters(self.source, spec))

    def view(self, shape: tuple[int, ...], grid: tuple[int, ...]) -> tuple[ViewSpec, int]:
        """How a memory of this shape is shown on a grid, and how many parameters show it."""
        spec = ReadSpec(shape, grid)
        if spec not in self._views:
            self._views[spec] = self._checked("read", spec, lambda: view_of(self.read, spec))
        view, module = self._views[spec]
        return view, 0 if module is None else _count(module)

    def own_view(self, shape: tuple[int, ...], grid: tuple[int, ...], path: str) -> OwnView | None:
        """The module that shows it, to stand at `path`; None where a few operations do."""
        spec, count = ReadSpec(shape, grid), self.view(shape, grid)[1]
        if self._views[spec][1] is None:
            return None
        rows = self._checked("read", spec, lambda: _shows_rows(self.read(spec), spec.size), meta=False)
        return OwnView(path, count, rows)

    def update_parameters(self, shape: tuple[int, ...], spot: UpdateSpot) -> int:
        """How many parameters the update at a spot has."""
        spec = block_spec(self.config, shape, spot)
        return self._checked("block", spec, lambda: _update_parameters(self.block, spec))

    def _checked(self, role: Role, spec: MemorySpec, run: Callable[[], T], *, meta: bool = True) -> T:
        for device in ("meta", None) if meta else (None,):
            try:
                with torch.device(device) if device else nullcontext():
                    return run()
            except Exception as error:  # it may need values, which the next run has
                failed = error
        told = str(failed) if isinstance(failed, ConfigError) else f"{type(failed).__name__}: {failed}"
        asked = getattr(self.config, role)
        what = repr(asked) if isinstance(asked, str) else getattr(asked, "__name__", type(asked).__name__)
        raise ConfigError(f"memory {self.config.name!r}: {role} {what}, made for {spec}: {told}") from failed


def block_spec(config: AimConfig, shape: tuple[int, ...], spot: UpdateSpot) -> BlockSpec:
    """What the block at a spot is made from."""
    return BlockSpec(shape, spot.features, spot.grid, config.mode == "gated", factory_of("read", config.read))


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _source_parameters(factory: Factory, spec: SourceSpec) -> int:
    source = factory(spec)
    if not isinstance(source, nn.Module):
        raise ConfigError(f"it gives a {type(source).__name__}; a source is a torch.nn.Module")
    _check(source(), [1, spec.size], "a source")
    return _count(source)


def _update_parameters(factory: Factory, spec: BlockSpec) -> int:
    update = update_of(factory, spec)
    if isinstance(update, BlockUpdate):
        features = torch.zeros(2, spec.features, *spec.grid)
        given = update.block.eval()(torch.zeros(2, spec.size), features)
        _check(given, [2, spec.size], "for 2 samples an update block")
    return _count(update)


def _check(given: Any, wanted: list[int], what: str) -> None:
    told = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
    if told != wanted:
        raise ConfigError(f"it gives {told}; {what} gives {wanted}")


def _shows_rows(module: nn.Module, size: int) -> bool:
    values = torch.randn(3, size)
    module.eval()
    return torch.allclose(module(values), torch.cat([module(row) for row in values.split(1)]), rtol=1e-4, atol=1e-5)
