"""A read of your own: each place of a layer's input attends over the rows of the memory.

The memory is a table of ``rows`` vectors of ``channels`` values. Every site learns a query for each place of its input;
a place reads the mean of the rows, weighted by how well they match its query.
"""

import math

import torch
from torch import Tensor, nn

import aimgraph


class AttentionRead(nn.Module):
    """[B, N] -> [B, *S, channels]: softmax(Q K^T / sqrt(channels)) M, with K = M W.

    Args:
        spec: `shape` of the memory, (rows, cols, channels) or (N,); `grid` S of the site's input.
    """

    def __init__(self, spec: aimgraph.ReadSpec) -> None:
        super().__init__()
        self.grid, self.channels = spec.grid, spec.shape[-1]
        self.query = nn.Parameter(torch.empty(spec.positions, self.channels))
        self.key = nn.Linear(self.channels, self.channels, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all values anew, as a new memory set needs it."""
        nn.init.normal_(self.query)
        self.key.reset_parameters()

    def forward(self, memory: Tensor) -> Tensor:
        """What each place reads."""
        rows = memory.unflatten(1, (-1, self.channels))  # [B, rows * cols, channels]
        match = self.query @ self.key(rows).mT / math.sqrt(self.channels)  # [B, P, rows * cols]
        return (match.softmax(-1) @ rows).reshape(-1, *self.grid, self.channels)


aimgraph.register("read", "attention", AttentionRead)

if __name__ == "__main__":
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))
    x = torch.randn(2, 3, 16, 16)
    aim = aimgraph.transform(model, x, shape=(12, 1, 6), read="attention")
    print(aimgraph.plan(aim))
    print("the same output as before, bit for bit:", torch.equal(aim(x), model(x)))
