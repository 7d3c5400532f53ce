"""torch.compile takes every form as one graph, and no second one for another batch size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn

import aimgraph
from tests.nets import randomise

X, OTHER = torch.randn(4, 3, 16, 16), torch.randn(6, 3, 16, 16)
SHAPE = (4, 4, 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down, self.mix, self.head = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.mix(self.down(x).relu()).mean((2, 3)))


def _transformed(**options: Any) -> Callable[[], nn.Module]:
    return lambda: randomise(aimgraph.transform(Net(), X, shape=SHAPE, **options))


FORMS: dict[str, Callable[[], nn.Module]] = {
    f"{lowering}, {memory}": _transformed(lowering=lowering, **options)
    for lowering in ("split", "concat")
    for memory, options in {
        "static": {},
        "written": {"updates": "stages"},
        "state": {"updates": "stages", "carry": "state"},
    }.items()
}
FOLDED: dict[str, Callable[[], nn.Module]] = {
    "folded": lambda: aimgraph.fold(_transformed()()),
    "folded, fused": lambda: aimgraph.fold(_transformed()(), fuse_batchnorm=True),
}


def compiled(module: nn.Module) -> tuple[Any, Any]:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    return torch.compile(module, fullgraph=True, dynamic=True, backend=counter), counter


@pytest.mark.parametrize("form", [*FORMS, *FOLDED])
def test_one_graph_for_every_batch_in_eval_mode(form: str) -> None:
    module = (FORMS | FOLDED)[form]().eval()
    run, counter = compiled(module)
    torch.testing.assert_close(run(X), module(X))
    made = counter.frame_count
    assert made
    torch.testing.assert_close(run(OTHER), module(OTHER))
    assert counter.frame_count == made


@pytest.mark.parametrize("form", list(FORMS))
def test_one_graph_for_every_batch_in_train_mode(form: str) -> None:
    module = FORMS[form]().train()
    run, counter = compiled(module)
    made = []
    for x in (X, OTHER):
        run(x).square().sum().backward()
        made.append(counter.frame_count)
    missing = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert 0 < made[0] == made[1]
    assert missing == []
