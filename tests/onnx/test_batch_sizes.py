"""Files of models that take few batch sizes, and what is said of models that an exporter can't follow."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.errors import ExampleInputError, ExportError
from tests.nets import randomise


class GraphNet(nn.Module):
    """Sums what edges lead to a node; they number the nodes, [2, E]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.first(x).relu()
        gathered = torch.zeros_like(h).index_add_(0, edges[1], h[edges[0]])
        return self.second(h + gathered)


class Checking(GraphNet):
    """Looks at the edges first."""

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        if int(edges.max()) >= x.shape[0]:
            raise IndexError(f"node {int(edges.max())} of {x.shape[0]}")
        return super().forward(x, edges)


class Dividing(nn.Module):
    """Takes batches that divide its queue."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        assert 16 % x.shape[0] == 0, x.shape
        return self.second(self.first(x).relu())


class Deciding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if h.sum().item() > 0:
            h = h * 2
        return self.second(h.relu())


def graph_inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 6), torch.tensor([[0, 1, 2, 3, 4, 5, 2], [1, 2, 3, 4, 5, 0, 0]])


@pytest.mark.parametrize("memory", ["constant", "input", "inside"])
def test_where_edges_number_the_nodes_the_examples_size_is_exported_and_compared(memory: str, tmp_path: Path) -> None:
    aim = randomise(aimgraph.transform(GraphNet().eval(), graph_inputs())).eval()
    report = aimgraph.export_onnx(aim, tmp_path / "graph.onnx", memory=memory)  # type: ignore[arg-type]
    assert report.batch_sizes == (6, 7)
    assert report.relative_difference < 1e-5
    check = aimgraph.verify_onnx(tmp_path / "graph.onnx")
    assert check.ok, check


@pytest.mark.parametrize("kind", [GraphNet, Checking])
def test_a_graph_network_is_folded_at_the_examples_size(kind: type[nn.Module]) -> None:
    base, inputs = kind().eval(), graph_inputs()
    aim = randomise(aimgraph.transform(base, inputs)).eval()
    folded = aimgraph.fold(aim)
    with torch.no_grad():
        torch.testing.assert_close(folded(*inputs), aim(*inputs), rtol=1e-5, atol=1e-6)
        assert not torch.equal(folded(*inputs), base(*inputs))
    bad = (inputs[0], inputs[1] + 1)
    with pytest.raises(IndexError, match=r"node 6 of 6|out of"):
        folded(*bad)


def test_batch_sizes_that_were_given_are_those_of_the_file(tmp_path: Path) -> None:
    aim = randomise(aimgraph.transform(Dividing().eval(), torch.randn(4, 6), example_batches=(4, 8))).eval()
    assert aimgraph.export_onnx(aim, tmp_path / "a.onnx").batch_sizes == (4, 8)
    assert aimgraph.export_onnx(aimgraph.fold(aim), tmp_path / "b.onnx").batch_sizes == (4, 8)


def test_a_model_that_runs_at_no_size_that_is_tried(tmp_path: Path) -> None:
    class Never(Dividing):
        broken = False

        def forward(self, x: Tensor) -> Tensor:
            if self.broken:
                raise ValueError("the queue is gone")
            return super().forward(x)

    base = Never().eval()
    base.broken = True
    with pytest.raises(
        ExampleInputError, match=r"\[4, 6\].*batch sizes \[1, 3\]: the queue is gone; give example inputs"
    ):
        aimgraph.export_onnx(base, tmp_path / "a.onnx", torch.randn(4, 6), memory="none")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("memory", ["constant", "input", "inside"])
@pytest.mark.parametrize("inner", [False, True])
def test_what_decides_by_values_is_named_in_every_form(memory: str, inner: bool, tmp_path: Path) -> None:
    base = nn.Sequential(Deciding(), nn.Linear(4, 3)) if inner else Deciding()
    aim = randomise(aimgraph.transform(base.eval(), torch.randn(4, 6))).eval()
    name = r"0 \(Deciding\)" if inner else "the model"
    place = r".*test_batch_sizes.py:\d+ in forward; let it compute with torch\.where"
    with pytest.raises(ExportError, match=f"; {name} can't be followed without values: .*{place}"):
        aimgraph.export_onnx(aim, tmp_path / "a.onnx", memory=memory)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
