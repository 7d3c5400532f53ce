"""Bottleneck adapters behind chosen convolutions: a transformation that is not memory, written as one pass.

Before:  y = conv(x);  z = next(y)
After:   y = conv(x);  z = next(adapter(y))        adapter(y) = y + up(relu(down(y)))

`down` and `up` are 1x1 convolutions with a few channels between them, and `up` starts at zero, so that the network
computes what it did until the adapters are trained. Run it: ``python examples/bottleneck_adapters.py``.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.compiler.aim_paths import aim_path
from aimgraph.compiler.graph_tools import insert_module
from aimgraph.compiler.node_keys import SHAPES
from aimgraph.compiler.program import BasePass, PassResult, Program
from aimgraph.planning.patterns import select_paths
from aimgraph.planning.sites import Skipped
from aimgraph.reproducible import own_stream
from aimgraph.runtime.memory import put_module


class Adapter(nn.Module):
    """``y + up(relu(down(y)))`` on maps [B, C, H, W].

    Args:
        channels: C.
        rank: Channels between the two convolutions.
    """

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, rank, 1), nn.Conv2d(rank, channels, 1)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, y: Tensor) -> Tensor:
        """The adapted map."""
        return y + self.up(self.down(y).relu())


@dataclass(frozen=True)
class InsertAdapters(BasePass):
    """An adapter behind every call of the chosen convolutions and linear layers; one for all calls of a layer.

    Args:
        layers: Globs or ``re:`` regexes of layers' paths.
        rank: Channels between an adapter's convolutions.
        seed: Of their first values.
    """

    layers: tuple[str, ...]
    rank: int = 8
    seed: int = 0

    def run(self, program: Program) -> PassResult:
        """Insert the adapters; layers that give no map are left, with the reason.

        Raises:
            PlanError: A glob fits no layer.
        """
        paths = [path for path, module in program.root.named_modules() if module in program.kinds]
        chosen, skipped, modified = select_paths(self.layers, paths, "layers"), [], False
        for graph in program.graphs.values():
            for node in graph.find_nodes(op="call_module"):
                site = str(node.target)
                if site not in chosen:
                    continue
                shape = node.meta[SHAPES][0] if SHAPES in node.meta else ()
                if len(shape) != 4:
                    skipped.append(Skipped(site, "adapter", f"it gives {list(shape)} and no map [B, C, H, W]"))
                    continue
                path = aim_path("adapters", site)
                if any(user.target == path for user in node.users):
                    continue
                self._put(program.root, path, shape[1], program.root.get_submodule(site))
                with graph.inserting_after(node):
                    adapted = insert_module(graph, path, node)
                node.replace_all_uses_with(adapted, delete_user_cb=lambda user, adapted=adapted: user is not adapted)
                modified = True
        return PassResult(program, modified, tuple(dict.fromkeys(skipped)))

    def _put(self, root: nn.Module, path: str, channels: int, layer: nn.Module) -> None:
        if path not in dict(root.named_modules()):
            with own_stream(f"{self.seed}/{path}"):
                weight = next(layer.parameters())
                put_module(root, path, Adapter(channels, self.rank).to(weight.device, weight.dtype))


def main() -> None:
    """Adapt a network, train the adapters alone, ship them, and take them off again."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16 * 16, 4))
    x, labels = torch.randn(32, 3, 8, 8), torch.randint(4, (32,))
    adapted = aimgraph.transform(base, x, passes=(InsertAdapters(layers=("*",), rank=4),))
    assert torch.equal(adapted(x), base(x))

    aimgraph.freeze_base(adapted)
    optimizer = torch.optim.Adam(aimgraph.memory_parameters(adapted), lr=1e-2)
    for step in range(60):
        loss = nn.functional.cross_entropy(adapted(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    print(f"trained: loss {loss.item():.3f}")

    file = Path(tempfile.mkdtemp()) / "adapted.onnx"
    print(aimgraph.export_onnx(adapted.eval(), file, x[:2]))
    assert torch.equal(aimgraph.strip(adapted)(x), base.eval()(x))


if __name__ == "__main__":
    main()
