"""The arm that a static memory comes down to: a learned number for each place and channel of a layer's output.

    y = layer(x) + map,   map = layer_m(m; Wm) for every m and Wm that a static memory could learn

A layer has one map for each size of what it gives, used at each call that gives it, as all calls read one memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aimgraph.copies import copy_module
from aimgraph.errors import ConfigError, ExampleInputError
from aimgraph.experiment.arms.making import Making
from aimgraph.experiment.arms.memory import sites_of
from aimgraph.reproducible import kept_randomness, plain_attention
from aimgraph.runtime.accumulate import accumulate
from aimgraph.runtime.memory import free_name

Size = tuple[int | None, ...]
"""Shape of an output; None is the dimension of the batch."""


class BiasMaps(nn.Module):
    """A base with maps that are added to the outputs of some layers.

    Args:
        base: It is changed: its layers have hooks.
        sizes: Path of a layer -> the sizes of what it gives.
    """

    def __init__(self, base: nn.Module, sizes: Mapping[str, Sequence[Size]]) -> None:
        super().__init__()
        self.base = base
        self.maps = nn.ParameterDict()
        like = next((one for one in base.parameters() if one.is_floating_point()), torch.empty(0))
        for path, own in sizes.items():
            names: dict[Size, str] = {}
            for size in own:
                name = free_name(path.replace(".", "/"), lambda one: one not in self.maps)
                shape = [1 if length is None else length for length in size]
                self.maps[name] = nn.Parameter(like.new_zeros(shape))
                names[size] = name
            base.get_submodule(path).register_forward_hook(_Adds(path, self.maps, names))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the base gives."""
        return self.base(*args, **kwargs)


class _Adds:
    """A forward hook that adds a map.

    It is an object, so that a copy of the model adds the maps of the copy.

    Args:
        path: Of the layer.
        maps: All maps.
        names: Size of an output -> name of the map.
    """

    def __init__(self, path: str, maps: nn.ParameterDict, names: dict[Size, str]) -> None:
        self.path, self.maps, self.names = path, maps, names

    def __call__(self, _: nn.Module, __: Any, output: Any) -> Tensor:
        name = next((name for size, name in self.names.items() if _fits(output, size)), None)
        if name is None:
            told = list(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            known = " or ".join(str(["B" if one is None else one for one in size]) for size in self.names)
            raise ExampleInputError(
                f"bias-map: {self.path} gives {told}, and has a number for each place of {known}: let all "
                "examples have one size (data.side), or leave the arm out"
            )
        value = self.maps[name]
        assert isinstance(value, Tensor)
        return accumulate(output, value)


def _fits(output: Any, size: Size) -> bool:
    if not isinstance(output, Tensor) or output.dim() != len(size):
        return False
    return all(want is None or have == want for have, want in zip(output.shape, size, strict=True))


def bias_map(making: Making) -> nn.Module:
    """Maps for the layers that would read a static memory of the options.

    Raises:
        ConfigError: None of them is a module that gives a tensor.
    """
    making.needs_static()
    sites, prefix = sites_of(making), "model." if making.recipe.frozen else ""
    whole = making.whole()
    found = _sizes(whole, [f"{prefix}{path}" for path, function in sites.items() if not function], making.x)
    left = [path for path in sites if not found.get(f"{prefix}{path}")]
    told = f"{', '.join(left[:4])}{f' and {len(left) - 4} more' if len(left) > 4 else ''}"
    why = "calls of functions, or modules that are not called, or give no single tensor with a batch"
    if len(left) == len(sites):
        raise ConfigError(
            f"the arm 'bias-map' adds to what modules give, and the layers of {making.recipe.model} that would read "
            f"are {why}: {told}; leave the arm out"
        )
    if left:
        making.notes.append(f"bias-map: {len(left)} of {len(sites)} layers have no map, as they are {why}: {told}")
    return BiasMaps(whole, {path: own for path, own in found.items() if own})


def _sizes(model: nn.Module, paths: Sequence[str], x: Tensor) -> dict[str, list[Size]]:
    """Path -> sizes of what the layer gives, in eval and in train mode; none where one of its outputs has no size."""
    found: dict[str, list[Size]] = {}
    unfit: set[str] = set()
    for train in (False, True):
        few, more = (_outputs(model, paths, x, batch, train=train) for batch in (2, 3))
        for path in paths:
            pairs = list(zip(few.get(path, []), more.get(path, []), strict=False))
            for one, other in pairs:
                size = _size(one, other)
                if size is None:
                    unfit.add(path)
                elif size not in found.setdefault(path, []):
                    found[path].append(size)
    return {path: sizes for path, sizes in found.items() if path not in unfit}


def _size(one: Any, other: Any) -> Size | None:
    """Of outputs for two batch sizes; None if they are no tensors, or differ in more than one dimension."""
    if one is None or other is None or len(one) != len(other):
        return None
    size = tuple(length if length == more else None for length, more in zip(one, other, strict=True))
    return size if size.count(None) <= 1 else None


def _outputs(
    model: nn.Module, paths: Sequence[str], x: Tensor, batch: int, *, train: bool
) -> dict[str, list[tuple[int, ...] | None]]:
    """Path -> shape of what each call of the layer gives, None for what is no tensor; of a copy of the model."""
    found: dict[str, list[tuple[int, ...] | None]] = {}
    copied = copy_module(model).train(train)
    for path in paths:

        def note(_: nn.Module, __: Any, output: Any, path: str = path) -> None:
            found.setdefault(path, []).append(tuple(output.shape) if isinstance(output, Tensor) else None)

        copied.get_submodule(path).register_forward_hook(note)
    with torch.no_grad(), kept_randomness(), plain_attention():
        copied(x[torch.arange(batch) % len(x)])
    return found
