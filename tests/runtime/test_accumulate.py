"""What is read is added to a layer's output, in place where that is legal."""

import pytest
import torch
from torch import nn

from aimgraph.runtime.accumulate import accumulate


def test_accumulate_is_in_place_where_it_may() -> None:
    y = torch.randn(3, 4)
    assert accumulate(y, torch.ones(1, 4)) is y
    view = torch.randn(3, 8)[:, ::2]
    before = view.clone()
    assert torch.equal(accumulate(view, torch.ones(1, 4)), before + 1)
    assert torch.equal(view, before)
    assert accumulate(torch.zeros(1, 4), torch.ones(3, 4)).shape == (3, 4)


def test_full_backward_hooks_go_on_working() -> None:
    import aimgraph

    base = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    x = torch.randn(2, 3, 8, 8)
    aim = aimgraph.transform(base, x)
    seen = []
    aim.get_submodule("0").register_full_backward_hook(lambda *_: seen.append(1))
    aim(x.requires_grad_()).sum().backward()
    assert seen == [1]


def test_vmap_over_memories() -> None:
    import aimgraph

    base = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    aim = aimgraph.transform(base, x, start="drawn", shape=(6,))
    memories = torch.randn(7, 6, dtype=torch.float64)

    def call(memory: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(aim, {"aim.memory.source.value": memory}, (x,))

    batched = torch.func.vmap(call)(memories)
    assert torch.allclose(batched, torch.stack([call(memory) for memory in memories]))


def test_vmap_over_convolutions() -> None:
    import aimgraph

    base = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).double()
    x = torch.randn(5, 3, 4, 6, dtype=torch.float64)
    aim = aimgraph.transform(base, x, start="drawn", shape=(4, 6, 2))
    memories = torch.randn(7, 48, dtype=torch.float64)

    def call(memory: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(aim, {"aim.memory.source.value": memory}, (x,))

    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        batched = torch.func.vmap(call, (0, None))(memories, given)
        torch.testing.assert_close(batched, torch.stack([call(memory, x) for memory in memories]))
        by_sample = torch.func.vmap(call, (None, 0))(memories[0], given.unsqueeze(1))
        torch.testing.assert_close(by_sample.squeeze(1), call(memories[0], x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("when", ["before", "after"])
def test_terms_are_laid_out_as_the_outputs_they_are_added_to(
    layout: torch.memory_format, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aimgraph

    base = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1, stride=2), nn.Conv2d(4, 6, 3, groups=2)
    )
    x = torch.randn(2, 3, 10, 12)
    if when == "before":
        base.to(memory_format=layout)  # type: ignore[call-overload]
    aim = aimgraph.transform(base, x, start="drawn", shape=(10, 12, 1)).to(memory_format=layout)
    added, add = [], torch.Tensor.add_

    def seen(self: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        added.append((self.stride()[1:], other.stride()[1:]))
        return add(self, other)

    monkeypatch.setattr(torch.Tensor, "add_", seen)
    for given in (x, torch.randn(2, 3, 14, 9)):
        aim(given.contiguous(memory_format=layout))
    assert len(added) == 8
    assert all(output == term for output, term in added)
