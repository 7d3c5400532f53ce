"""Which parameters had gradients before `freeze_base` stopped them."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Stopped:
    """Parameters that required gradients, as named in the model that was frozen.

    Attributes:
        part: Path of the transformed part in that model.
        names: Of the parameters.
    """

    part: str = ""
    names: frozenset[str] = frozenset()

    def seen_from(self, path: str) -> set[str]:
        """Their names in a larger or smaller model, in which the part stands at `path`."""
        there, here = self.part.split(".") if self.part else [], path.split(".") if path else []
        while there and here and there[-1] == here[-1]:
            del there[-1], here[-1]
        gone, added = "".join(f"{name}." for name in there), "".join(f"{name}." for name in here)
        return {added + name.removeprefix(gone) for name in self.names if name.startswith(gone)}


def give_gradients(model: nn.Module, names: Iterable[str]) -> None:
    """Let parameters require gradients again, those of the names that are still there."""
    wanted = set(names)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in wanted:
            parameter.requires_grad_(True)
