"""What training keeps for the backward pass, in bytes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """Bytes that a training forward of the example inputs keeps until its backward pass, weights not counted.

    Attributes:
        full: Where base and memory are trained.
        frozen: Where the base is frozen and torch keeps what it keeps.
        lean: Where the base is frozen and its forward keeps what the gradients still wanted need.
        unknown: Why that is not known; empty if it is.
    """

    full: int = 0
    frozen: int = 0
    lean: int = 0
    unknown: str = ""

    def __str__(self) -> str:
        """One line."""
        if self.unknown:
            return f"kept for the backward pass: not known, {self.unknown}"
        full, frozen, lean = (f"{size / 1e6:,.1f} MB" for size in (self.full, self.frozen, self.lean))
        share = f" ({self.lean / self.full:.2%} of all trained)" if self.full else ""
        return f"kept for the backward pass: all trained {full}, frozen base {frozen}, frozen and lean {lean}{share}"
