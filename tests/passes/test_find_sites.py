"""Every layer is a site or has a reason."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from aimgraph.passes import FindSites
from aimgraph.planning.sites import SiteCall
from tests.nets import NETS, Activated
from tests.passes.helpers import fingerprint, program_for


def found(net: str | nn.Module, x: Tensor | None = None) -> tuple[dict[str, tuple[SiteCall, ...]], dict[str, str]]:
    program, x = program_for(net, x)
    before = fingerprint(program)
    result = FindSites().run(program)
    assert not result.modified
    assert fingerprint(result.program) == before
    plan = result.program.plan
    assert FindSites().run(program).program.plan == plan
    return {s.path: s.calls for s in plan.sites}, {s.path: s.reason for s in plan.skipped}


@pytest.mark.parametrize("name", NETS)
def test_every_layer_is_accounted_for(name: str) -> None:
    sites, skipped = found(name)
    program, _ = program_for(name)
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    layers = {path for path, module in program.root.named_modules() if isinstance(module, kinds)}
    functions = {site.path for site in FindSites().run(program).program.plan.sites if site.function}
    products = {path for path, reason in skipped.items() if reason.startswith("a product outside of layers")}
    assert set(sites) | set(skipped) == layers | functions | products
    assert products == ({"kernels"} if name == "sample_kernels" else set())
    assert set(sites)


@pytest.mark.parametrize(
    ("name", "path", "grid", "batch_axis", "ratio", "channel_axis"),
    [
        ("conv2d", "0", (8, 9), 0, 1, 1),
        ("conv3d", "2", (3, 4, 5), 0, 1, 1),
        ("linear", "0", (), 0, 1, 1),
        ("tokens", "mix", (7,), 0, 1, 2),
        ("tokens", "head", (), 0, 1, 1),
        ("channels_last", "up", (5, 6), 0, 1, 3),
        ("sequence_first", "mix", (6,), 1, 1, 2),
        ("windows", "mix", (4,), 0, 4, 2),
        ("position", "position", (4,), None, 0, 1),
    ],
)
def test_layouts(
    name: str, path: str, grid: tuple[int, ...], batch_axis: int | None, ratio: int, channel_axis: int
) -> None:
    if name == "sequence_first":
        sites, _ = found(_TimeFirst(), torch.zeros(2, 6, 5, dtype=torch.float64))
    else:
        sites, _ = found(name)
    call = sites[path][0]
    assert (call.grid, call.batch_axis, call.batch_ratio, call.channel_axis) == (grid, batch_axis, ratio, channel_axis)


class _TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.transpose(0, 1))


class _Odd(nn.Module):
    """Layers that can't read, each for its own reason, and functions that can."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.borrowed = nn.Linear(4, 4)
        self.activated = Activated(1, 1, 1)
        self.over_batch = nn.Linear(2, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.hooked = nn.Linear(4, 4)
        self.hooked.register_forward_hook(lambda *_: None)
        self.memory = nn.GRUCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.used(x) + F.linear(x, self.borrowed.weight)
        y = y + self.attention(y[:, None], y[:, None], y[:, None], need_weights=False)[0][:, 0]
        y = y + F.linear(y, y, y[:, 0]) @ F.linear(y, self.used.weight[0])[:, None]
        return self.memory(self.hooked(y + self.activated(y[:, None, :, None])[:, 0, :, 0]))


def test_reasons() -> None:
    sites, skipped = found(_Odd(), torch.randn(3, 4))
    attention = [f"attention.linear_{i}" for i in range(4)]
    assert list(sites) == ["used", "linear_0", *attention, "activated.conv2d_0"]
    assert skipped == {
        "unused": "never called in the forward pass",
        "borrowed": "never called as a layer: other code uses its weight",
        "activated": "its own forward calls torch.relu on the input: entered, what it calls is a site of its own",
        "over_batch": "never called in the forward pass",
        "attention.out_proj": "never called as a layer: other code uses its weight",
        "hooked": "it has a forward hook, which may change its output: register it on the result instead",
        "linear_1": "its weight [3, 4] changes with the batch size: a product of two features",
        "linear_2": "its weight [4] is a vector: the output has no channels",
        "memory": "recurrent layers are left as they are",
    }


class _Functions(nn.Module):
    """Functions called under the same name with other weights in train mode, and one name that is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_0 = nn.Linear(4, 4)
        self.first, self.second = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + F.linear(F.linear(x, self.first), self.first.T * 0.1)
        return self.linear_0(x) + F.linear(x, self.second)


def test_the_same_name_for_two_functions() -> None:
    base, x = _Functions(), torch.randn(3, 4)
    program, _ = program_for(base, x)
    sites = FindSites().run(program).program.plan.sites
    assert [(s.path, s.channels, len(s.calls)) for s in sites] == [
        ("linear_0_", (4, 6), 1),
        ("linear_1", (6, 4), 1),
        ("linear_0", (4, 4), 2),
        ("linear_2", (4, 4), 1),
        ("linear_0__1", (4, 4), 1),
    ]
    aim = aimgraph.transform(base, x, verify="full")
    assert aimgraph.verify(base, aim).ok


class _BatchAsFeatures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix = nn.Linear(4, 3), nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.first(x).T)  # the batch becomes the sequence


def test_the_batch_is_never_grid() -> None:
    sites, skipped = found(_BatchAsFeatures(), torch.randn(3, 4))
    assert list(sites) == ["first"]
    assert skipped["mix"].startswith("its input [3, 3] changes in dimensions [1] with the batch size")


class _OneCallCanNotRead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x[:, :, None]).sum(2) + self.mix(x.T[None])[0].T  # the second time the batch is the grid


def test_a_layer_with_one_call_that_can_not_read_is_split_only() -> None:
    program, _ = program_for(_OneCallCanNotRead(), torch.randn(4, 3))
    (site,) = FindSites().run(program).program.plan.sites
    assert (len(site.calls), site.split_only) == (
        1,
        "another call of this layer can't read, so its weight can't be widened",
    )
    base, x = _OneCallCanNotRead(), torch.randn(4, 3)
    aim = aimgraph.transform(base, x, lowering="concat", verify="full")
    assert torch.equal(aim(x), base(x))
    assert {read.lowering for read in aimgraph.plan(aim).memories[0].reads} == {"split"}
