"""Which inputs carry the batch, and what is said if none does."""

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from tests.tracing.bases import Base, X


class _Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        return self.mix(x) + position


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_an_input_whose_first_size_only_looks_like_the_batch(batch: int) -> None:
    base, x, position = _Positions(), torch.randn(batch, 5, 4), torch.randn(5, 4)
    aim = aimgraph.transform(base, (x, position))
    plan = aimgraph.plan(aim)
    assert plan.inputs == ((batch, 5, 4), (5, 4))
    assert plan.memories[0].reads[0].grid == (5,)
    assert torch.equal(aim(torch.cat([x, x]), position), base(torch.cat([x, x]), position))
    assert aimgraph.verify(base, aim).ok


def test_a_size_that_no_example_batch_fits_is_an_error() -> None:
    class Fixed(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x).reshape(3, 2, 2)

    with pytest.raises(aimgraph.ExampleInputError, match=r"does not run on inputs .* at batch size 4"):
        aimgraph.transform(Fixed(), X)
