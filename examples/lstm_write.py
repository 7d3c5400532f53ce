"""An update block of your own: features are written into the memory as an LSTM writes into its cell.

At each place of the memory the features there decide what is forgotten and what is written:

    c <- sigmoid(f) * c + sigmoid(i) * tanh(g)        [f ; i ; g] = W [features ; c] + b
"""

import torch
from torch import Tensor, nn

import aimgraph


class LSTMWrite(nn.Module):
    """[B, N], [B, C, *S] -> [B, N].

    Args:
        spec: `shape` of the memory, (rows, cols, channels) or (N,); `features` C.
    """

    def __init__(self, spec: aimgraph.BlockSpec) -> None:
        super().__init__()
        self.channels = spec.shape[-1]
        self.grid = spec.shape[:-1] or (1, 1)
        self.gates = nn.Linear(spec.features + self.channels, 3 * self.channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all values anew, as a new memory set needs it."""
        self.gates.reset_parameters()
        with torch.no_grad():
            self.gates.bias[: self.channels] += 1.0  # at first, remember

    def zero_(self) -> None:
        """Write nothing at first, as ``start="zero_values"`` needs it: tanh(g) is zero."""
        nn.init.zeros_(self.gates.weight[2 * self.channels :])
        nn.init.zeros_(self.gates.bias[2 * self.channels :])

    def forward(self, memory: Tensor, features: Tensor) -> Tensor:
        """The cell after these features."""
        cell = memory.unflatten(1, (-1, self.channels))  # [B, rows * cols, channels]
        map_ = features.reshape(*features.shape[:2], -1, *(features.shape[3:] or (1,)))  # [B, C, rows, cols]
        seen = nn.functional.adaptive_avg_pool2d(map_, self.grid).flatten(2).mT  # [B, rows * cols, C]
        forget, write, new = self.gates(torch.cat([seen, cell], dim=2)).chunk(3, dim=2)
        return (forget.sigmoid() * cell + write.sigmoid() * new.tanh()).flatten(1)


aimgraph.register("block", "lstm", LSTMWrite)

if __name__ == "__main__":
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))
    x = torch.randn(2, 3, 16, 16)
    aim = aimgraph.transform(model, x, shape=(4, 4, 8), updates=("1",), block="lstm", carry="state")
    print(aimgraph.plan(aim))
    print("the same output as before, bit for bit:", torch.equal(aim(x), model(x)))
