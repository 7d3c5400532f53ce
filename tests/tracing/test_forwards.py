"""What users write in their forwards: states that are set, parameters that are asked, names, methods, numbers."""

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.emit.dispatch import MOST_EAGER
from tests.nets import randomise

X = torch.linspace(-1, 1, 12).reshape(3, 4)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 3)


class _Seeds(Base):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return self.mix(x + torch.randn_like(x))


class _Forks(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            noise = torch.randn(X.shape[1])
        return self.mix(x + noise)


class _ChoosesAKernel(Base):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.reshape(x.shape[0], 1, 1, -1) for part in (x, x + 1, x - 1))
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.mix(attended.flatten(1))


@pytest.mark.parametrize("kind", [_Seeds, _Forks, _ChoosesAKernel])
def test_states_that_a_forward_sets_are_set(kind: type[Base]) -> None:
    base = kind()
    aim = aimgraph.transform(base, X)
    assert torch.equal(aim(X), base(X))
    assert aimgraph.verify(base, aim).ok
    assert not torch.equal(randomise(aim)(X), base(X))


def test_a_generator_draws_at_every_call() -> None:
    class Net(Base):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x + torch.randn(x.shape[1], generator=self.generator))

    aim = aimgraph.transform(Net(), X)
    assert not torch.equal(aim(X), aim(X))


def test_dtypes_of_parameters_are_those_of_the_call() -> None:
    class Net(Base):
        def forward(self, x: Tensor) -> Tensor:
            first = next(self.parameters())
            return self.mix(x.to(first.dtype).to(dict(self.named_parameters())["mix.bias"].device))

    base = Net()
    aim = aimgraph.transform(base, X)
    assert torch.equal(aim.bfloat16()(X), base.bfloat16()(X))
    assert aim.to("meta")(X.to("meta")).is_meta


def test_names_that_are_keywords() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleDict({"class": nn.Linear(5, 3), "from": nn.Linear(3, 2)})

        def forward(self, x: Tensor) -> Tensor:
            return self.heads["from"](self.heads["class"](x))

    base, x = Net(), torch.randn(4, 5)
    aim = aimgraph.transform(base, x)
    assert torch.equal(aim(x), base(x))
    assert torch.equal(aimgraph.fold(aim)(x), base.eval()(x))


def test_a_call_of_its_own_is_refused() -> None:
    class Net(Base):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(2 * x)

    with pytest.raises(aimgraph.PlanError, match="Net has a __call__ of its own"):
        aimgraph.transform(Net(), X)


def test_a_method_that_is_lost_says_so() -> None:
    class Net(Base):
        def encode(self, x: Tensor) -> Tensor:
            return self.mix(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.encode(x)

    aim = aimgraph.transform(Net(), X)
    with pytest.raises(AttributeError, match=r"encode\(\) is a method of Net, and the transformed module"):
        aim.encode(X)


def test_a_layer_called_with_and_without_the_batch_reads_once_at_each() -> None:
    class Net(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x) + self.mix(x.mean(0, keepdim=True))

    base = Net()
    assert aimgraph.verify(base, aimgraph.transform(base, X)).ok


def test_verify_of_a_forward_that_overwrites_its_input() -> None:
    class Net(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x.sub_(1))

    base = Net()
    assert aimgraph.verify(base, aimgraph.transform(base, X)).ok


def test_numbers_that_are_others_at_every_call_are_not_remembered_for_ever() -> None:
    class Net(Base):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.mix(x) * (scale if scale < 10_000 else 0.0)

    base = Net()
    aim = aimgraph.transform(base, ((X,), {"scale": 0.5})).train()
    led = aim._record.eager
    led.update(dict.fromkeys(range(MOST_EAGER)))
    assert torch.equal(aim(X, scale=0.25), base(X, scale=0.25))
    assert len(led) == 1
