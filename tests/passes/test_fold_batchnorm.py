"""Layer, map and norm become layer and map."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from tests.nets import apart, randomise


class _Norms(nn.Module):
    """Norms behind layers: of every kind, and some that can't be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.grouped, self.plain = nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6, affine=False)
        self.up, self.behind_up = nn.ConvTranspose2d(6, 4, 2, 2), nn.BatchNorm2d(4)
        self.twice, self.shared = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.seen, self.behind_seen = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.fresh, self.batch = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
        self.row, self.behind_row = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.tokens, self.behind_tokens = nn.Linear(5, 5), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.grouped(self.norm(self.first(x)).relu())).relu()
        x = self.behind_up(self.up(x))
        x = self.shared(self.twice(self.shared(self.twice(x))))
        seen = self.seen(x)
        x = self.behind_seen(seen) + seen
        x = self.batch(self.fresh(x))
        x = self.behind_row(self.row(x.mean((2, 3))))
        return self.behind_tokens(self.tokens(torch.stack([x, x + 1, x * 2], 1)))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_norms_are_fused_where_nothing_else_looks(dtype: torch.dtype, bound: float) -> None:
    base, x = _Norms().to(dtype), torch.randn(4, 3, 8, 8, dtype=dtype)
    aim = randomise(aimgraph.transform(base, x))
    for norm in aim.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    aim.eval()
    folded, fused = aimgraph.fold(aim), aimgraph.fold(aim, fuse_batchnorm=True)
    called = [str(node.target) for node in fused.graph.find_nodes(op="call_module")]
    left = ["behind_up", "shared", "shared", "behind_seen", "batch", "behind_tokens"]
    assert [name for name in called if isinstance(fused.get_submodule(name), nn.modules.batchnorm._BatchNorm)] == left
    for module in (folded, fused, copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert apart(module, aim, x) <= bound
    assert apart(fused, aim, torch.randn(7, 3, 8, 8, dtype=dtype)) <= bound
