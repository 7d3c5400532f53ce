"""From what a forward says to channel groups: all that has to grow together, and why some can't."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from aimgraph.widen.flow import Numbering
from aimgraph.widen.labels import FIXED, distinct
from aimgraph.widen.ties import Held, Ties, components


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that lie in the same tensors and can grow one step at a time.

    A step is the least that can grow: a channel, with all that is tied to it. Each adds as many positions to an axis
    as it has there.

    Attributes:
        steps: The steps, each named by its smallest channel, in order: shape (n,).
        members: (name, axis) of a parameter or buffer -> positions of one step there.
        made_by: (name, axis) of the weights that make the channels.
        by_copies: Why they can only grow as exact copies; empty if they need not.
        reason: Why they can't grow; empty if they can.
    """

    steps: Tensor
    members: dict[tuple[str, int], int]
    made_by: tuple[tuple[str, int], ...]
    by_copies: str = ""
    reason: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the modules that make them, in the model's order."""
        return tuple(dict.fromkeys(module_of(name) for name, _ in self.made_by))

    @property
    def channels(self) -> int:
        """How many channels the first of these layers gives."""
        return self.channels_in(self.layers[0]) * len(self.steps)

    def channels_in(self, layer: str) -> int:
        """How many channels of a layer one step copies."""
        made = [self.members[place] for place in self.made_by if module_of(place[0]) == layer]
        return max(made or [count for (name, axis), count in self.members.items() if module_of(name) == layer])

    def followers(self, analysis: "Analysis") -> list[str]:
        """Paths of the modules with a kernel for each of the channels, as depthwise convolutions have."""
        numbering, found = analysis.numbering, dict[str, None]()
        for name, axis in self.members:
            read = bool(analysis.read[numbering.starts[name, axis]])
            if axis == 0 and len(numbering.shapes[name]) > 1 and not read and module_of(name) not in self.layers:
                found[module_of(name)] = None
        return list(found)

    def told_members(self, most: int = 4) -> str:
        """The tensors that grow together, in words."""
        names = list(dict.fromkeys(name for name, _ in self.members))
        rest = f" and {len(names) - most} more" if len(names) > most else ""
        return f"{', '.join(names[:most])}{rest} grow together"

    def told_reason(self) -> str:
        """Why they can't grow, or how only."""
        return self.reason or f"as they can only be copied exactly, all of them: {self.by_copies}"


def module_of(name: str) -> str:
    """The path of the module that a parameter or buffer belongs to; its own name where that is the model itself."""
    return name.rpartition(".")[0] or name


@dataclass
class Analysis:
    """The channels of a model, and what grows together.

    Attributes:
        numbering: Of the channels.
        same: Channel -> the smallest one that is the same.
        step: Channel -> the smallest one that grows with it.
        made: Whether a layer gives the channel.
        read: Whether a weight is summed over it.
        held: Step -> why it can't grow.
        by_copies: Step -> why it can only grow as exact copies.
    """

    numbering: Numbering
    same: Tensor
    step: Tensor
    made: Tensor
    read: Tensor
    held: dict[int, str] = field(default_factory=dict)
    by_copies: dict[int, str] = field(default_factory=dict)

    def hold(self, ids: Tensor, reason: str) -> int:
        """Hold the steps of some channels; how many are new."""
        steps = torch.unique(self.step[ids]).tolist()
        new = [step for step in steps if step != FIXED and step not in self.held]
        self.held.update(dict.fromkeys(new, reason))
        return len(new)

    def groups(self) -> list[Group]:
        """All that a layer makes, in the order of the model's tensors."""
        size = self.numbering.size
        makes = torch.zeros(size, dtype=torch.bool)
        makes[self.step[self.made.nonzero().flatten()]] = True
        own = makes[self.step]
        own[FIXED] = False
        channels = own.nonzero().flatten()
        steps, places = self.step[channels], self.numbering.place(channels)
        places_of = len(self.numbering.names)
        keys, counts = torch.unique(steps * places_of + places, return_counts=True)
        members: dict[int, list[tuple[int, int]]] = {}
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            members.setdefault(key // places_of, []).append((key % places_of, count))
        makers = self._makers()
        found: dict[tuple[object, ...], list[int]] = {}
        for step, where in members.items():
            key = (tuple(where), self.held.get(step, ""), self.by_copies.get(step, ""))
            found.setdefault(key, []).append(step)
        groups = [self._group(key, own_steps, makers) for key, own_steps in found.items()]
        return sorted(groups, key=lambda group: int(group.steps[0]))

    def _makers(self) -> dict[int, set[int]]:
        """Step -> the places whose tensors make its channels."""
        ids = self.made.nonzero().flatten()
        both = distinct(torch.stack([self.step[ids], self.numbering.place(ids)], 1))
        makers: dict[int, set[int]] = {}
        for step, place in both.tolist():
            makers.setdefault(step, set()).add(place)
        return makers

    def _group(self, key: tuple[object, ...], steps: list[int], makers: dict[int, set[int]]) -> Group:
        where, reason, by_copies = key
        names = self.numbering.names
        members = {names[place]: count for place, count in where}  # type: ignore[attr-defined]
        made_by = tuple(names[place] for place in sorted(makers[steps[0]]))
        return Group(torch.tensor(steps), members, made_by, str(by_copies), str(reason))


def analyse(numbering: Numbering, ties: Ties) -> Analysis:
    """What grows together, and why some can't."""
    size = numbering.size
    same = components(size, ties.same)
    step = components(size, [*ties.same, *ties.alike])
    made, read = _marked(size, ties.made), _marked(size, ties.read)
    analysis = Analysis(numbering, same, step, made, read)
    for held in sorted(ties.held, key=lambda one: one.by_copies):
        _say(analysis, held)
    both = (made & read).nonzero().flatten()
    if len(both):
        analysis.hold(both, "the weight that makes them reads them, too")
    return analysis


def _marked(size: int, ids: list[Tensor]) -> Tensor:
    marks = torch.zeros(size, dtype=torch.bool)
    if ids:
        marks[torch.cat(ids)] = True
    marks[FIXED] = False
    return marks


def _say(analysis: Analysis, held: Held) -> None:
    if not held.by_copies:
        analysis.hold(held.ids, held.reason)
        return
    for step in torch.unique(analysis.step[held.ids]).tolist():
        analysis.by_copies.setdefault(step, held.reason)
