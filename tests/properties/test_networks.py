"""Random small networks through the whole pipeline."""

import copy
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import aimgraph
from tests.nets import FUZZ, gradients, randomise, run


@dataclass(frozen=True)
class Block:
    """One step of a random network; every step keeps the grid at least one position wide."""

    kind: str
    width: int
    kernel: int
    stride: int
    groups: int
    act: str


BLOCKS = st.builds(
    Block,
    kind=st.sampled_from(["conv", "conv", "depthwise", "branch", "residual", "transposed", "shared", "pool", "norm"]),
    width=st.sampled_from([2, 4, 6]),
    kernel=st.sampled_from([1, 2, 3]),
    stride=st.sampled_from([1, 1, 2]),
    groups=st.sampled_from([1, 2]),
    act=st.sampled_from(["relu", "relu_", "tanh", "none"]),
)


class RandomNet(nn.Module):
    """A chain of blocks over [B, 2, *grid], then a linear head."""

    def __init__(self, rank: int, blocks: list[Block]) -> None:
        super().__init__()
        self.rank, self.plan = rank, blocks
        conv = (nn.Conv1d, nn.Conv2d)[rank - 1]
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d)[rank - 1]
        norm = (nn.BatchNorm1d, nn.BatchNorm2d)[rank - 1]
        channels = 2
        self.parts = nn.ModuleList()
        for block in blocks:
            k, pad, w = block.kernel, block.kernel // 2, block.width
            if block.kind == "conv":
                part: nn.Module = conv(channels, w, k, block.stride, pad, groups=block.groups)
                channels = w
            elif block.kind == "depthwise":
                part = conv(channels, 2 * channels, k, block.stride, pad, groups=channels)
                channels *= 2
            elif block.kind == "branch":
                part = nn.ModuleList([conv(channels, w, 3, padding=1), conv(channels, 2, 1)])
                channels = w + 2
            elif block.kind in ("residual", "shared"):
                part = conv(channels, channels, 3, padding=1)
            elif block.kind == "transposed":
                part = transposed(channels, w, k, block.stride, groups=block.groups)
                channels = w
            elif block.kind == "norm":
                part = norm(channels)
            else:
                part = nn.Identity()
            self.parts.append(part)
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block, part in zip(self.plan, self.parts, strict=True):
            if block.kind == "branch":
                x = torch.cat([part[0](x), part[1](x)], 1)
            elif block.kind == "residual":
                x = x + part(x)
            elif block.kind == "shared":
                x = part(torch.tanh(part(x)))
            elif block.kind == "pool":
                pool = (nn.functional.max_pool1d, nn.functional.max_pool2d)[self.rank - 1]
                x = pool(x, 2, ceil_mode=True)
            else:
                x = part(x)
            if block.act == "relu_" and block.kind != "pool":
                x = torch.relu_(x)
            elif block.act in ("relu", "tanh"):
                x = getattr(torch, block.act)(x)
        return self.head(x.flatten(2).mean(2))


LAYERS = {"conv", "depthwise", "branch", "residual", "transposed", "shared"}

NETWORKS = st.tuples(
    st.integers(1, 2),
    st.lists(BLOCKS, min_size=1, max_size=5),
    st.lists(st.integers(3, 9), min_size=2, max_size=2),
    st.integers(0, 2**31),
)
MEMORIES = st.fixed_dictionaries(
    {"shape": st.sampled_from([(3,), (2, 2, 3), (1, 3, 7), "auto"])},
    optional={
        "read": st.sampled_from(["reshape", "resize"]),
        "updates": st.sampled_from([None, "stages"]),
        "start": st.sampled_from(["zero_reads", "zero_values", "drawn"]),
    },
)


def build(network: tuple[int, list[Block], list[int], int]) -> tuple[nn.Module, Tensor]:
    rank, blocks, grid, seed = network
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RandomNet(rank, blocks).double(), torch.randn(2, 2, *grid[:rank], dtype=torch.float64)


@settings(max_examples=60 * FUZZ, deadline=None, suppress_health_check=list(HealthCheck))
@given(network=NETWORKS, memory=MEMORIES)
def test_identity_forms_and_undo(network: tuple[int, list[Block], list[int], int], memory: dict[str, object]) -> None:
    base, x = build(network)
    if memory.get("updates") and not any(block.kind in LAYERS for block in network[1]):
        memory = memory | {"updates": None}  # the head alone leaves no feature to update from
    split = aimgraph.transform(base, x, verify="full", **(memory | {"start": "zero_reads"}))
    for mode in (True, False):
        one, other = copy.deepcopy(base).train(mode), copy.deepcopy(split).train(mode)
        for sample in (x, torch.cat([x, x[:1]])):
            assert torch.equal(run(one, sample), run(other, sample))
        assert torch.equal(run(aimgraph.strip(other), x), run(one, x))
    plan = aimgraph.plan(split)
    assert not plan.skipped
    assert plan.sites_read == plan.layers

    concat = aimgraph.transform(base, x, lowering="concat", verify="full", **memory)
    randomise(split)
    concat.load_state_dict(split.state_dict())
    for mode in (True, False):
        split.train(mode), concat.train(mode)
        expected, seen = gradients(split, x), gradients(concat, x)
        assert set(expected) == set(seen)
        for name, gradient in expected.items():
            assert (gradient - seen[name]).abs().max() <= 1e-9 * max(1.0, float(gradient.abs().max())), name
        with aimgraph.disable_memory(concat):
            assert torch.equal(run(copy.deepcopy(concat), x), run(aimgraph.strip(concat), x))
