"""What an arm is made from."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from aimgraph.bench.frozen import StandsStill
from aimgraph.errors import ConfigError
from aimgraph.experiment.recipe import IMPLIED, Arm, Recipe


@dataclass(frozen=True)
class Making:
    """What an arm is made from.

    Attributes:
        recipe: Says whether the base is frozen.
        arm: What to make of it.
        base: A fresh one; it is changed.
        x: Some examples, [B, ...].
        seed: Of the memory.
        notes: What the user should know of the arm; those who make it add to this.
    """

    recipe: Recipe
    arm: Arm
    base: nn.Module
    x: Tensor
    seed: int
    notes: list[str] = field(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        """Of `aimgraph.AimConfig`: the arm's own, and where they say nothing its seed and what its kind implies."""
        return {"seed": self.seed} | IMPLIED.get(self.arm.kind, {}) | self.arm.options

    @property
    def has_updates(self) -> bool:
        """Whether the options ask for updates."""
        return self.options.get("updates") is not None

    def whole(self) -> nn.Module:
        """The base as the recipe has it; a frozen one stands still, below ``model``."""
        if self.recipe.frozen:
            self.base.requires_grad_(False)
            return StandsStill(self.base)
        return self.base

    def fixed(self, **fixed: Any) -> dict[str, Any]:
        """The options with those that the kind of the arm sets.

        Raises:
            ConfigError: The arm's own options say something else.
        """
        for name, value in fixed.items():
            if self.arm.options.get(name, value) != value:
                raise ConfigError(
                    f"the arm {self.arm.kind!r} sets {name}={value!r}, and its options say "
                    f"{name}={self.arm.options[name]!r}: leave {name} out, or give another kind"
                )
        return self.options | fixed

    def needs_frozen(self, does: str) -> None:
        """Refuse a base that is trained.

        Args:
            does: What the arm does, for the message.

        Raises:
            ConfigError: The recipe does not freeze the base.
        """
        if not self.recipe.frozen:
            raise ConfigError(
                f"the arm {self.arm.kind!r} {does} a frozen base: set frozen = true, or leave it out of the recipe"
            )

    def needs_static(self) -> None:
        """Refuse options with updates.

        Raises:
            ConfigError: There are some.
        """
        if self.has_updates:
            raise ConfigError(
                f"the arm {self.arm.kind!r} is for a memory that nothing writes, and its options say "
                f'updates={self.options["updates"]!r}: give kind = "update", or "state" for updates that are '
                "carried to the next batch"
            )
