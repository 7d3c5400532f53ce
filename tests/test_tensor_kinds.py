"""Complex inputs, parameters and buffers, and sparse buffers: all that is done with a model has the right values."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.checkpoint.compare import distances, mean
from aimgraph.distance import dense
from aimgraph.inputs.batch import random_inputs
from tests.nets import randomise

C = torch.complex64
FEATURES = torch.linspace(-1, 1, 2 * 6 * 4).reshape(2, 6, 4)
COMPLEX = torch.complex(FEATURES[..., 0], FEATURES[..., 1])


class Complex(nn.Module):
    """Complex from its input to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(6, 5, dtype=C), nn.Linear(5, 3, dtype=C)
        self.gain = nn.Parameter(torch.polar(torch.ones(5), torch.arange(5.0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(x)) * self.gain)


class Rotated(nn.Module):
    """Real layers around a complex buffer, on a complex input."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(6, 5), nn.Linear(5, 3)
        self.register_buffer("turn", torch.polar(torch.ones(5), torch.arange(5.0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.mix(x.abs()) * self.turn).real)


class Spectral(nn.Module):
    """A filter in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.filter = nn.Linear(4, 8), nn.Parameter(torch.randn(4, 8, dtype=C))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(self.mix(x), dim=1) * self.filter, n=6, dim=1)


class Graph(nn.Module):
    """A network over a graph whose adjacency is sparse, with one product for the batch."""

    def __init__(self, adjacency: Tensor) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("adjacency", adjacency)

    def forward(self, x: Tensor) -> Tensor:
        nodes = torch.sparse.mm(self.adjacency, self.mix(x).transpose(0, 1).reshape(6, -1))
        return self.head(nodes.reshape(6, -1, 8).transpose(0, 1))


class GraphByGraph(Graph):
    """The same sample by sample, which is kept as one call."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([torch.sparse.mm(self.adjacency, nodes) for nodes in self.mix(x)]))


def _adjacency() -> Tensor:
    return torch.eye(6) + torch.diag(torch.ones(5), 1)


def _twice() -> Tensor:
    return torch.sparse_coo_tensor(
        torch.tensor([[0, 0, 1, 2], [0, 0, 1, 3]]), torch.tensor([0.5, 0.5, 1.0, 2.0]), (6, 6)
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "complex": (Complex, COMPLEX),
    "complex input": (Rotated, COMPLEX),
    "complex filter": (Spectral, FEATURES),
    "coordinates": (lambda: Graph(_adjacency().to_sparse()), FEATURES),
    "not coalesced": (lambda: Graph(_twice()), FEATURES),
    "compressed rows": (lambda: Graph(_adjacency().to_sparse_csr()), FEATURES),
    "coordinates, one call": (lambda: GraphByGraph(_adjacency().to_sparse()), FEATURES),
    "compressed rows, one call": (lambda: GraphByGraph(_adjacency().to_sparse_csr()), FEATURES),
}


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_what_is_made_of_it_has_its_values(name: str, tmp_path: Path) -> None:
    build, x = MODELS[name]
    torch.manual_seed(0)
    base = build().eval()
    fresh = aimgraph.transform(base, x)
    assert torch.equal(fresh(x), base(x))
    report = aimgraph.verify(base, fresh)
    assert report.ok, str(report)
    aim = randomise(copy.deepcopy(fresh))
    expected = aim(x)
    assert not torch.equal(expected, base(x))
    assert torch.equal(pickle.loads(pickle.dumps(aim))(x), expected)
    assert torch.equal(aimgraph.strip(aim)(x), base(x))
    assert torch.allclose(aimgraph.fold(aim)(x), expected, atol=1e-5)
    for what in ("memory", "all"):
        aimgraph.save(aim, tmp_path / what, what=what)
        other = build().eval() if what == "all" else base
        loaded = aimgraph.load(tmp_path / what, other)
        assert torch.equal(loaded(x), expected)
        for key, buffer in base.named_buffers():
            again = loaded.get_buffer(key)
            assert again.layout == buffer.layout
            assert torch.equal(dense(again), dense(buffer))


def test_verify_sees_another_sparse_or_complex_value() -> None:
    for build, x, change in (
        (MODELS["coordinates"][0], FEATURES, lambda net: net.adjacency.values().mul_(2)),
        (Rotated, COMPLEX, lambda net: net.turn.mul_(1j)),
        (Complex, COMPLEX, lambda net: net.gain.data.mul_(1j)),
    ):
        base = build().eval()
        aim = aimgraph.transform(base, x)
        if isinstance(base, Graph):
            aim.adjacency = aim.adjacency.coalesce()
        change(aim)
        failed = {check.name for check in aimgraph.verify(base, aim, x).checks if not check.ok}
        assert {"base weights are unchanged", "strip gives the base back (eval)"} <= failed


def test_complex_memories_are_compared_and_averaged(tmp_path: Path) -> None:
    aim = randomise(aimgraph.transform(Complex(), COMPLEX))
    aimgraph.save(aim, tmp_path / "one")
    other = copy.deepcopy(aim)
    with torch.no_grad():
        for parameter in aimgraph.memory_parameters(other):
            parameter.mul_(1j)
    aimgraph.save(other, tmp_path / "other")
    for item in distances(tmp_path / "one", tmp_path / "other"):
        assert item.distance == pytest.approx(2**0.5 * item.norms[0], rel=1e-6)
    mean([tmp_path / "one", tmp_path / "other"], tmp_path / "mean")
    made = copy.deepcopy(aim)
    aimgraph.load_memory(made, tmp_path / "mean")
    for name, parameter in made.get_submodule("aim").named_parameters():
        assert torch.allclose(parameter, aim.get_submodule("aim").get_parameter(name) * (1 + 1j) / 2)


def test_complex_inputs_are_drawn() -> None:
    (one,), _ = random_inputs(((torch.empty(2, 4, dtype=C, device="meta"),), {}), 3, seed=1)
    assert one.shape == (3, 4)
    assert one.dtype == C
    assert 0.3 < float(one.real.std()) < 2
    assert 0.3 < float(one.imag.std()) < 2
    (again,), _ = random_inputs(((torch.full((2, 4), 1e3, dtype=C),), {}), 3, seed=1)
    assert torch.equal(one, again)
