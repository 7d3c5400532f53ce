"""What a forward changes outside of its result: buffers, attributes, containers, random states."""

import pickle
import random
from typing import Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import aimgraph
from tests.nets import run
from tests.tracing.bases import Base, X


class Counts(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return self.mix(x)


class Averages(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        if self.training:
            self.std.mul_(0.9).add_(0.1 * y.detach().mean(0))
        return y - self.std


class Scales(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x * (1 / self.std)[None, :])


class Noise(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x) + torch.rand(1) + torch.zeros(4).normal_()


class Remembers(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = self.mix(x)
        return self.last * 2


def states(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("kind", [Counts, Averages, Scales, Noise])
def test_buffers_and_draws_behave_as_in_the_base(kind: type[Base]) -> None:
    base = kind()
    aim = aimgraph.transform(base, X, verify="full")
    for mode in (True, False, True):
        base.train(mode), aim.train(mode)
        for seed in range(3):
            assert torch.equal(run(base, X, seed=seed), run(aim, X, seed=seed))
    for name, value in base.named_buffers():
        assert torch.equal(value, aim.get_buffer(name)), name
    assert aimgraph.verify(kind(), aimgraph.transform(kind(), X)).checks
    fresh = kind()
    assert aimgraph.verify(fresh, aimgraph.transform(fresh, X)).ok


@pytest.mark.parametrize("kind", [Counts, Averages, Noise, Remembers])
@pytest.mark.parametrize("inplace", [False, True])
def test_nothing_of_the_base_changes(kind: type[Base], inplace: bool) -> None:
    base = kind()
    before, rng = states(base), (torch.get_rng_state(), random.getstate())
    aimgraph.plan(base, X)
    aimgraph.transform(base, X, inplace=inplace)
    with pytest.raises(aimgraph.PlanError):
        aimgraph.transform(base, X, inplace=inplace, sites="nope")
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), rng[0])
    assert random.getstate() == rng[1]
    assert (base.calls, base.last) == (0, None)


def test_arithmetic_on_buffers_follows_a_loaded_checkpoint_and_a_move() -> None:
    base, other = Scales(), Scales()
    other.std.fill_(5.0)
    aim = aimgraph.transform(base, X)
    aim.load_state_dict(other.state_dict(), strict=False)
    assert torch.equal(aim(X), other(X))
    assert aim.bfloat16()(X.bfloat16()).dtype == torch.bfloat16
    assert vars(aimgraph.strip(aim)).keys() == vars(base).keys()


def test_random_states_are_as_before_a_look_at_the_base() -> None:
    class Draws(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x) * random.random() * float(np.random.rand()) * torch.rand(())

    base = Draws()
    rng = (torch.get_rng_state(), random.getstate(), str(np.random.get_state(legacy=False)))
    aimgraph.transform(base, X)
    assert torch.equal(torch.get_rng_state(), rng[0])
    assert random.getstate() == rng[1]
    assert str(np.random.get_state(legacy=False)) == rng[2]
    assert torch.is_grad_enabled()


def test_attributes_set_in_a_forward_are_noted_and_leak_nothing() -> None:
    aim = aimgraph.transform(Remembers(), X)
    notes = [note for note in aimgraph.plan(aim).notes if "the forward sets" in note]
    assert [note.split()[3].strip(",") for note in notes] == ["calls", "last"]
    assert (aim.calls, aim.last) == (0, None)
    assert torch.equal(pickle.loads(pickle.dumps(aim))(X), aim(X))


def test_tracing_runs_nothing_real() -> None:
    """What a node gives is derived on fake copies: no module of the base is called, no buffer moves."""
    seen = []

    class Leaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(type(x).__name__)
            return self.norm(x)

    base = nn.Sequential(nn.Linear(4, 4), Leaf()).train()
    before = states(base)
    aimgraph.transform(base, X)
    assert set(seen) == {"FakeTensor"}
    assert all(torch.equal(value, base.state_dict()[name]) for name, value in before.items())


class _Accumulates(Base):
    """Goes on from what the call before has left."""

    def __init__(self) -> None:
        super().__init__()
        self.trace: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        if self.trace is None:
            self.trace = torch.zeros_like(x)
        self.trace = self.trace * 0.9 + y.detach()
        return y + self.trace


class _Alternates(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.mix(x) if self.calls % 2 else self.mix(x.relu())


class _Prepares(Base):
    """Keeps in eval mode what comes from parameters alone, as attention with position biases does."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Self:
        self.cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.mix(x) + self.std.sqrt()
        if "bias" not in self.cache:
            self.cache["bias"] = self.std.sqrt()
        return self.mix(x) + self.cache["bias"]


class _Counted(Base):
    """Sets attributes that decide nothing."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = y = self.mix(x)
        return y


@pytest.mark.parametrize(("part", "fallback"), [(_Accumulates, 1), (_Alternates, 1), (_Prepares, 0), (_Counted, 0)])
def test_what_a_forward_leaves_to_the_next(part: type[nn.Module], fallback: int) -> None:
    base = nn.Sequential(nn.Linear(4, 4), part())
    aim = aimgraph.transform(base, X)
    for number in range(3):
        for module in (base, aim):
            module.train(number < 2)
        assert torch.equal(run(aim, X), run(base, X))
    assert (aimgraph.plan(aim).covered, aimgraph.plan(aim).fallback) == (2, fallback)


class _Expert(nn.Module):
    def __init__(self, losses: list[Tensor]) -> None:
        super().__init__()
        self.losses, self.gate, self.mix = losses, nn.Linear(X.shape[-1], 4), nn.Linear(X.shape[-1], X.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).softmax(-1)
        self.losses.append(gate.var())
        return self.mix(x) * gate.amax(-1, keepdim=True)


class _Experts(nn.Module):
    """Modules that share a list."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []
        self.experts = nn.ModuleList(_Expert(self.losses) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.losses.clear()
        for expert in self.experts:
            x = expert(x)
        return x, sum(self.losses)


def test_a_list_that_modules_share() -> None:
    base = _Experts()
    aim = aimgraph.transform(base, X, verify="full")
    with torch.no_grad():
        assert all(map(torch.equal, aim(X), base(X)))


class _Widths(nn.Module):
    """Sets on itself what its parent looks at."""

    def forward(self, x: Tensor) -> Tensor:
        self.width = x.shape[-1]
        return x * 2


class _Looks(Base):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([_Widths(), _Widths()])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            part.width = 1
            x = part(x) / part.width
        return self.mix(x)


def test_what_a_module_sets_on_itself() -> None:
    base = _Looks()
    aim = aimgraph.transform(base, X, verify="full")
    assert torch.equal(aim(X), base(X))


class _Collects(Base):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.named = [1], {"old": 2}

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        self.features.append(y)
        self.named["y"] = y
        return y


def test_containers_that_a_forward_changes_are_put_back() -> None:
    base = _Collects()
    aim = aimgraph.transform(base, X)
    assert (aim.features, aim.named) == ([1], {"old": 2})
    assert (base.features, base.named) == ([1], {"old": 2})
    assert [n for n in aimgraph.plan(aim).notes if "sets features" in n or "sets named" in n]
    pickle.dumps(aim)


def test_spectral_norm_is_not_disturbed() -> None:
    base = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 3)).train()
    before = states(base)
    for inplace in (False, True):
        aim = aimgraph.transform(base, X, inplace=inplace)
        assert all(torch.equal(value, aim.state_dict()[name]) for name, value in before.items())
    aim = aimgraph.transform(base, X)
    for mode in (True, False):
        assert torch.equal(aim.train(mode)(X), base.train(mode)(X))


def test_random_states_are_put_back_after_a_failure() -> None:
    class Net(Base):
        def forward(self, x: Tensor) -> Tensor:
            random.random()
            return self.mix(x) if x.sum() > -1e9 else x

    before = random.getstate()
    with pytest.raises(aimgraph.AimgraphError, match="mat1 and mat2"):
        aimgraph.transform(Net(), X[:, :3])
    assert random.getstate() == before
    aimgraph.transform(Net(), X)
    assert random.getstate() == before


class _Two(Base):
    """Two layers, and a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.plain = nn.Linear(4, 4), torch.ones(4)


class _NormalisesWeights(_Two):
    def forward(self, x: Tensor) -> Tensor:
        self.head.weight.data = nn.functional.normalize(self.head.weight.data, dim=1)
        return self.head(self.mix(x))


class _Clamps(_Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        y.data = y.data.clamp(-0.1, 0.1)
        return self.head(y)


class _Averaged(_Two):
    """Updates a slow copy of its weights, as momentum contrast does."""

    def forward(self, x: Tensor) -> Tensor:
        for slow, fast in zip(self.head.parameters(), self.mix.parameters(), strict=True):
            slow.data = slow.data * 0.9 + fast.data * 0.1
        return self.head(self.mix(x))


class _ScalesBuffer(_Two):
    def forward(self, x: Tensor) -> Tensor:
        self.std.data = self.std.data * 2
        return self.head(self.mix(x)) / self.std


class _SetsStorage(_Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        y.set_(y.detach().clamp(-0.1, 0.1))
        return self.head(y)


class _Swaps(_Two):
    def forward(self, x: Tensor) -> Tensor:
        y, z = self.mix(x).detach(), (x * 2).detach()
        torch.utils.swap_tensors(y, z)
        return self.head(y) + z


class _AsksForGradients(_Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x).detach()
        y.requires_grad = True
        return self.head(y)


class _DropsGradients(_Two):
    def forward(self, x: Tensor) -> Tensor:
        self.head.weight.grad = None
        return self.head(self.mix(x))


class _Freezes(_Two):
    def forward(self, x: Tensor) -> Tensor:
        self.head.requires_grad_(False)
        return self.head(self.mix(x))


class _ReshapesInPlace(_Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        y.unsqueeze_(1)
        return self.head(y).squeeze(1)


class _ReshapesReluInPlace(_Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(x).relu_().unsqueeze_(1)).squeeze(1)


class _Tags(_Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        y.scale = 3
        return self.head(y) * y.scale


class _PlainInPlace(_Two):
    def forward(self, x: Tensor) -> Tensor:
        self.plain.mul_(2)
        return self.head(self.mix(x)) * self.plain


class _PlainThroughView(_Two):
    def forward(self, x: Tensor) -> Tensor:
        self.plain.data[1:] *= 2
        return self.head(self.mix(x)) * self.plain


class _ByDictionary(_Two):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.head._parameters["weight"].mul_(0.5)
        return self.head(self.mix(x))


class _ByStateDict(_Two):
    def forward(self, x: Tensor) -> Tensor:
        self.head.state_dict()["weight"].mul_(0.5)
        return self.head(self.mix(x))


_CHANGED = (
    *(_NormalisesWeights, _Clamps, _Averaged, _ScalesBuffer, _SetsStorage, _Swaps, _AsksForGradients),
    *(_ReshapesInPlace, _ReshapesReluInPlace),
    *(_DropsGradients, _Freezes, _Tags, _PlainInPlace, _PlainThroughView, _ByDictionary, _ByStateDict),
)


@pytest.mark.parametrize("kind", _CHANGED)
def test_what_a_forward_changes_behind_a_graph_makes_it_one_call(kind: type[_Two]) -> None:
    base = nn.Sequential(nn.Linear(4, 4), kind()).eval()
    before, plain = states(base), base[1].plain.clone()
    aimgraph.plan(base, X)
    aimgraph.transform(base, X, inplace=True)
    aim = aimgraph.transform(base, X, verify="full")
    for module in (base, aim):
        assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert torch.equal(base[1].plain, plain)
    assert all(parameter.requires_grad for parameter in base.parameters())
    notes = [note for note in aimgraph.plan(aim).notes if "kept as one call" in note]
    assert [note.split()[0] for note in notes] == ["1"]
    for _ in range(3):
        assert torch.equal(run(aim, X), run(base, X))
    assert all(torch.equal(value, aim.state_dict()[name]) for name, value in base.state_dict().items())


class _Constants(_Two):
    def forward(self, x: Tensor) -> Tensor:
        scale = self.plain.clone()
        scale.mul_(2)[1:] += 1
        return self.head(self.mix(x)) * scale * nn.Parameter(x)


def test_constants_of_the_forward_may_change() -> None:
    base = _Constants()
    aim = aimgraph.transform(base, X, verify="full")
    assert aimgraph.plan(aim).fallback == 0
    assert aimgraph.verify(base, aim).ok


class _ConvertsALayer(_Two):
    """Computes a layer in double precision, and gives it back as it was."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix.double()(x.double()).float()
        self.mix.float()
        return self.head(y)


def test_a_layer_that_a_forward_converts() -> None:
    base = _ConvertsALayer().eval()
    with pytest.raises(aimgraph.PlanError, match=r"^mix: the forward calls it in torch.float64.*exclude=\('mix',\)"):
        aimgraph.transform(base, X)
    aim = aimgraph.transform(base, X, exclude=("mix",), verify="full")
    assert torch.equal(run(aim, X), run(base, X))
    assert {parameter.dtype for parameter in base.parameters()} == {torch.float32}
