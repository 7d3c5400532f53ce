"""A layer that reads at some of its calls is a site, and says why it does not read at the others."""

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.planning.plan import Plan
from tests.nets import randomise


class Detector(nn.Module):
    """Takes one dict of targets per image, so that it can train with two images only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, targets: list[dict[str, Tensor]] | None = None) -> Tensor | list[Tensor]:
        features = self.body(x).flatten(1)
        if self.training:
            assert targets is not None
            return (features.sum(1) - torch.stack([target["y"] for target in targets])).square().mean()
        return [one[one > 0.3] for one in features]


class TwoCalls(nn.Module):
    """[B, 3, 4]: the second call has the batch where the grid is."""

    def __init__(self, *, backwards: bool = False, opaque: bool = False) -> None:
        super().__init__()
        self.mix, self.backwards, self.opaque = nn.Conv1d(3, 3, 1), backwards, opaque

    def forward(self, x: Tensor) -> Tensor:
        if self.backwards:
            y = self.mix(x.transpose(0, 2)).sum() + self.mix(x)
        else:
            y = self.mix(x) + self.mix(x.transpose(0, 2)).sum()
        return y * 2 if self.opaque and y.sum() > 1e9 else y


class Twice(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)
        self.other = self.one

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x) + self.one(x.sum(0))


class Loop(nn.Module):
    """Calls its layer once for the batch, and once for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) + torch.stack([self.mix(one) for one in x.sum(1)])[:, None]


class Wrapped(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.head = part, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x))


X = torch.linspace(-1, 1, 24).sin().reshape(2, 3, 4)


def _reads_and_left(plan: Plan) -> tuple[set[str], set[str]]:
    return {read.site for _, read in plan.reads}, {item.path for item in plan.skipped}


@pytest.mark.parametrize("part", [TwoCalls, Twice, Loop], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("opaque", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_no_layer_reads_and_is_left(part: type[nn.Module], opaque: bool, backwards: bool) -> None:
    base = Wrapped(part(backwards=backwards, opaque=opaque) if part is TwoCalls else part())
    aim = aimgraph.transform(base, X)
    plan = aimgraph.plan(aim)
    reads, left = _reads_and_left(plan)
    assert not reads & left
    assert {site.path for site in plan.sites} == reads
    assert set(plan.called) <= reads | left
    assert aimgraph.verify(base, aim, X)
    assert aimgraph.verify(base, randomise(aim), X)


@pytest.mark.parametrize("backwards", [False, True])
def test_the_other_calls_are_told(backwards: bool) -> None:
    plan = aimgraph.plan(Wrapped(TwoCalls(backwards=backwards)), X)
    site, head = plan.sites
    (why,) = site.left
    assert why.startswith("its input [4, 3, 2] changes in dimensions [2] with the batch size")
    assert (len(site.calls), head.left, plan.skipped) == (1, (), ())
    assert (plan.covered, len(plan.called), plan.left) == (1, 2, {"part.mix": why})
    assert "another call does not" in str(plan)
    assert plan.to_dict()["memories"][0]["reads"][0]["left"] == (why,)


def test_inside_one_call_a_layer_reads_at_every_call_or_at_none() -> None:
    plan = aimgraph.plan(Wrapped(TwoCalls(opaque=True)), X)
    (item,) = plan.skipped
    assert item.reason.startswith("of its 2 calls inside part, one can't read: its input [4, 3, 2] changes")
    assert [site.path for site in plan.sites] == ["head"]


def test_a_mode_that_takes_one_batch_size_leaves_what_the_other_shows() -> None:
    inputs = torch.randn(2, 3, 8, 8), [{"y": torch.zeros(())}, {"y": torch.zeros(())}]
    base = Detector()
    aim = aimgraph.transform(base, inputs)
    plan = aimgraph.plan(aim)
    assert ([site.path for site in plan.sites], plan.skipped, plan.left) == (["body"], (), {})
    randomise(aim)
    term = aim.get_submodule("aim.memory.reads.body")
    seen: list[Tensor] = []
    term.register_forward_hook(lambda *given: seen.append(given[-1]))
    aim.train()(*inputs)
    aim.eval()(*inputs)
    assert len(seen) == 2
    assert torch.equal(*seen)
