"""Finding out which groups can grow: by letting all of them, and holding what the forward does not take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aimgraph.errors import PlanError
from aimgraph.user_code import told_error
from aimgraph.widen.analysis import Analysis, Group, analyse
from aimgraph.widen.attempt import Attempt, attempt
from aimgraph.widen.choose import copies_of
from aimgraph.widen.layout import Growth, Layout
from aimgraph.widen.subject import Seen, Subject

MOST_TRIES = 30
"""How often a forward is tried before it is believed that it takes nothing."""


@dataclass
class Settled:
    """A model's channels, with those held that its forward does not let grow.

    Attributes:
        subject: The model.
        analysis: Of its channels.
        before: What its forward has shown.
        copying: Whether new channels are exact copies.
    """

    subject: Subject
    analysis: Analysis
    before: Seen
    copying: bool = True

    def free(self) -> list[Group]:
        """The groups that can grow."""
        return [group for group in self.analysis.groups() if not group.reason and (self.copying or not group.by_copies)]

    def lay_out(
        self, choose: Callable[[Sequence[Group]], Sequence[int]]
    ) -> tuple[Growth, Layout, list[Group], list[int]]:
        """Grow the groups that can, as chosen, and hold what the forward does not take until it takes all of it.

        Args:
            choose: How many steps each of some groups gets.

        Returns:
            How often each channel is there, where copies lie, the groups, and how many steps each gets.

        Raises:
            PlanError: The forward fails whatever grows.
        """
        for _ in range(MOST_TRIES):
            groups = self.free()
            added = list(choose(groups))
            growth = Growth(self.analysis, copies_of(self.analysis, groups, added))
            if not any(added):
                return growth, Layout.empty(), groups, added
            tried = attempt(self.subject, growth, self.before)
            if tried.error is None and not tried.refusals and tried.layout is not None:
                return growth, tried.layout, groups, added
            self._hold(tried, groups, added)
        raise PlanError(f"{type(self.subject.model).__name__}: its forward took none of {MOST_TRIES} ways to widen it")

    def _hold(self, tried: Attempt, groups: Sequence[Group], added: Sequence[int]) -> None:
        new = sum(self.analysis.hold(refusal.ids, refusal.reason) for refusal in tried.refusals)
        if new:
            return
        reason = f"the forward fails: {told_error(tried.error)}" if tried.error else tried.refusals[0].reason
        for group in culprits(groups, added, self._fails):
            self.analysis.hold(group.steps, reason)

    def _fails(self, groups: Sequence[Group], added: Sequence[int]) -> bool:
        """Whether the forward fails when some groups grow, and no others."""
        tried = attempt(self.subject, Growth(self.analysis, copies_of(self.analysis, groups, added)), self.before)
        return tried.error is not None or bool(tried.refusals)


def culprits(
    groups: Sequence[Group], added: Sequence[int], fails: Callable[[Sequence[Group], Sequence[int]], bool]
) -> list[Group]:
    """Groups without which something does not fail any more, found by trying halves.

    Args:
        groups: Groups with which it fails.
        added: How many steps each gets.
        fails: Whether it fails when some of them grow, and no others.
    """
    growing = [(group, steps) for group, steps in zip(groups, added, strict=True) if steps]
    if len(growing) < 2:
        return [group for group, _ in growing]
    half = len(growing) // 2
    found: list[Group] = []
    for part in (growing[:half], growing[half:]):
        own, steps = [group for group, _ in part], [number for _, number in part]
        if fails(own, steps):
            found += culprits(own, steps, fails)
    return found or [group for group, _ in growing[half:]]


def settle(subject: Subject, *, copying: bool = True) -> Settled:
    """Look at a model, then let every group that could grow do so, until its forward takes what is left.

    Args:
        subject: The model.
        copying: Whether new channels are exact copies.

    Raises:
        Exception: Whatever the model's own forward raises as it is.
    """
    seen = subject.followed()
    settled = Settled(subject, analyse(seen.numbering, seen.ties), seen, copying)
    for group in settled.free():
        reasons = [subject.stay.get(name) for name, _ in group.made_by]
        if all(reasons):
            settled.analysis.hold(group.steps, str(reasons[0]))
    settled.lay_out(lambda groups: [len(group.steps) for group in groups])
    return settled
