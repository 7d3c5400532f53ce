"""What of the base the emitted module keeps: names, hooks, modes, kinds of output."""

import copy
import pickle
from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import aimgraph
from tests.nets import randomise, run
from tests.tracing.bases import Base, X


class _Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.mix(x), 0.5, self.training)


class _Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.back, self.plain, self.head = _Part(), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.plain(self.back(x)))


def test_a_part_in_another_mode_is_refused_where_it_matters() -> None:
    base = _Parts()
    aim = aimgraph.transform(base, X).train()
    aim.back.eval()
    with pytest.raises(aimgraph.TraceError, match=r"back is in eval mode and the model in train mode.*freeze_base"):
        aim(X)
    aim.back.train()
    aim.plain.eval()  # does not look at its mode
    assert torch.equal(run(aim, X), run(base.train(), X))
    aimgraph.freeze_base(aim).train()
    assert torch.equal(aim(X), base.eval()(X))
    assert torch.equal(copy.deepcopy(aim)(X), aim(X))
    with aimgraph.disable_memory(aim):
        assert torch.equal(aim(X), base(X))


@dataclass
class _Output(OrderedDict):  # type: ignore[type-arg]
    """A result that is a dictionary and has fields, as some libraries return."""

    logits: object = None
    hidden: object = None

    def __post_init__(self) -> None:
        self["logits"], self["hidden"] = self.logits, self.hidden

    def __getattr__(self, name: str) -> object:
        return self[name]


@pytest.mark.parametrize("kind", [OrderedDict, _Output, dict])
def test_kinds_of_output(kind: type) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> object:
            y = self.mix(x)
            if kind is _Output:
                return _Output(logits=y, hidden=x)
            return kind([("logits", y), ("hidden", x)])

    base = Net()
    output = aimgraph.transform(base, X)(X)
    assert type(output) is kind
    assert list(output) == ["logits", "hidden"]
    assert torch.equal(output["logits"], base(X)["logits"])


@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_a_module_under_two_names(lowering: str) -> None:
    def build() -> nn.Module:
        block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        return nn.Sequential(block, block, nn.Conv2d(3, 2, 1))

    torch.manual_seed(0)
    base, other, x = build(), build(), torch.randn(2, 3, 6, 5)
    aim = aimgraph.transform(base, x, lowering=lowering, shape=(4, 4, 2))
    result = aim.load_state_dict(other.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith("aim.") for key in result.missing_keys)
    for key, value in other.state_dict().items():
        assert torch.equal(value, aim.state_dict()[key]), key
    assert torch.allclose(aim(x), other(x), atol=1e-6)
    twin = aimgraph.transform(base, x, lowering="split", shape=(4, 4, 2))
    twin.load_state_dict(randomise(aim).state_dict())
    assert torch.allclose(twin(x), aim(x), atol=1e-5)
    bare = aimgraph.strip(aim)
    assert bare[0] is bare[1]
    assert torch.equal(bare(x), other(x))


def test_what_is_lost_is_listed() -> None:
    class Net(Base):
        @property
        def width(self) -> int:
            return 4

        def reset_memory(self) -> None: ...

        def __len__(self) -> int:
            return 1

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x)

    (note,) = [n for n in aimgraph.plan(aimgraph.transform(Net(), X)).notes if "lost" in n]
    assert note == "methods of Net that are lost: __len__, reset_memory"


class _Renames(Base):
    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_rename_old)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


def test_state_dict_hooks_of_the_base_are_kept() -> None:
    base = _Renames()
    old = {key.replace("mix", "old"): value for key, value in base.state_dict().items()}
    for lowering in ("split", "concat"):
        aim = aimgraph.transform(base, X, lowering=lowering)
        for module in (aim, copy.deepcopy(aim), pickle.loads(pickle.dumps(aim)), aimgraph.strip(aim)):
            result = module.load_state_dict(old, strict=False)
            assert not result.unexpected_keys
            assert all(key.startswith("aim.") for key in result.missing_keys)
        assert len(copy.deepcopy(copy.deepcopy(aim))._state_dict_hooks) == len(aim._state_dict_hooks)


def _rename_old(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for key in [key for key in state if "old" in key]:
        state[key.replace("old", "mix")] = state.pop(key)
