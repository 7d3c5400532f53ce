"""One submodule of a larger model is transformed in place of it; quantised models."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.emit.module import AimModule
from tests.nets import randomise, run

X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = torch.relu(self.stem(x))
        return {"fine": fine, "coarse": self.down(fine)}


class Detector(nn.Module):
    """Decides by values after its backbone, takes a list, and shares a weight with it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.alias = self.backbone
        self.head = nn.Conv2d(3, 4, 3, padding=1)
        self.head.weight = self.backbone.stem.weight

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        features = self.backbone(torch.stack(images))
        scores = features["coarse"].mean((1, 2, 3))
        return [scores[scores > 0], self.head(torch.stack(images)).mean()]

    def describe(self) -> str:
        return "a detector"


def outputs(model: nn.Module) -> list[Tensor]:
    return model(list(X))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_the_rest_of_the_model_is_as_it_was(inplace: bool, lowering: str) -> None:
    if inplace and lowering == "concat":
        with pytest.raises(aimgraph.ConfigError, match="inplace=True shares the parameters"):
            aimgraph.transform(Detector(), X, within="backbone", inplace=inplace, lowering=lowering)
        return
    base = Detector()
    keys = set(base.state_dict())
    whole = aimgraph.transform(base, X, within="backbone", inplace=inplace, lowering=lowering, shape=(4, 4, 2))
    assert type(whole) is Detector
    assert isinstance(whole.backbone, AimModule)
    assert whole.alias is whole.backbone
    assert type(base.backbone) is Backbone
    assert whole.describe() == "a detector"
    if lowering == "split":
        assert whole.head.weight is whole.backbone.stem.weight
    assert (whole.head.weight is base.head.weight) == inplace
    for one, other in zip(outputs(base), outputs(whole), strict=True):
        assert torch.allclose(one, other, atol=0 if lowering == "split" else 1e-6)
    result = whole.load_state_dict(base.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith(("backbone.aim.", "alias.aim.")) for key in result.missing_keys)
    bare = aimgraph.strip(whole)
    assert set(bare.state_dict()) == keys
    assert bare.alias is bare.backbone
    assert bare.head.weight is bare.backbone.stem.weight or lowering == "concat"
    for one, other in zip(outputs(base), outputs(bare), strict=True):
        assert torch.equal(one, other)


def test_what_one_does_with_it() -> None:
    base = Detector()
    whole = aimgraph.transform(base, X, within="backbone")
    assert aimgraph.plan(whole).sites_read == 2
    assert aimgraph.plan(base, X, within="backbone").to_dict() == aimgraph.plan(whole).to_dict()
    added = list(aimgraph.memory_parameters(whole))
    assert len(added) == 3
    randomise(whole.backbone)
    expected = outputs(whole)
    assert not torch.equal(expected[0], outputs(base)[0]) or expected[0].numel() == 0
    for twin in (copy.deepcopy(whole), pickle.loads(pickle.dumps(whole))):
        for one, other in zip(outputs(twin), expected, strict=True):
            assert torch.equal(one, other)
    with aimgraph.disable_memory(whole):
        for one, other in zip(outputs(whole), outputs(base), strict=True):
            assert torch.equal(one, other)
    assert torch.equal(outputs(whole)[0], expected[0])
    aimgraph.freeze_base(whole)
    assert all(p.requires_grad == any(p is q for q in added) for p in whole.parameters())
    assert aimgraph.verify(base.backbone, aimgraph.transform(base, X, within="backbone").backbone).ok


def test_errors() -> None:
    with pytest.raises(aimgraph.PlanError, match=r"Detector has no submodule 'backbon'; near misses: backbone"):
        aimgraph.transform(Detector(), X, within="backbon")
    configs = [aimgraph.AimConfig(name="a", within="backbone"), aimgraph.AimConfig(name="b")]
    with pytest.raises(aimgraph.ConfigError, match="memories of one transform belong to one module"):
        aimgraph.transform(Detector(), X, config=configs)
    done = aimgraph.transform(Detector(), X, within="backbone")
    with pytest.raises(aimgraph.PlanError, match="transformed already"):
        aimgraph.transform(done, X, within="backbone")


def test_a_quantised_layer_is_refused_and_a_dynamic_one_is_listed() -> None:
    packed = nn.Sequential(nn.Conv2d(3, 4, 1), torch.ao.nn.quantized.Conv2d(4, 4, 1))
    with pytest.raises(aimgraph.PlanError, match=r"1 \(Conv2d\) is quantised: .* transform the float model"):
        aimgraph.transform(packed, X)
    base = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2), nn.Linear(64, 5))
    torch.ao.quantization.quantize_dynamic(base, {nn.Linear}, inplace=True)
    aim = aimgraph.transform(base, X)
    plan = aimgraph.plan(aim)
    assert [site.path for site in plan.sites] == ["0"]
    assert {item.path: item.reason.partition(":")[0] for item in plan.skipped} == {"2": "quantised"}
    assert torch.equal(run(base, X), run(aim, X))


class Tied(nn.Module):
    """Its decoder has the weight of a layer of its encoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
        self.between, self.decoder = nn.Linear(3, 6), nn.Linear(6, 12)
        self.decoder.weight = self.encoder[0].weight  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.between(self.encoder(x)))


MADE: dict[str, Callable[[nn.Module], Any]] = {
    "transform": lambda aim: aim,
    "refit": aimgraph.refit,
    "strip": aimgraph.strip,
    "fold": aimgraph.fold,
    "merge": lambda aim: aimgraph.merge(aim, partial=True).model,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("name", MADE)
def test_what_a_part_shares_with_the_rest_stays_shared(name: str) -> None:
    base, x = Tied(), torch.randn(4, 6)
    made: Any = MADE[name](aimgraph.transform(base, x, within="encoder"))
    assert made.decoder.weight is made.encoder.get_parameter("0.weight")
    assert made.decoder.weight is not base.decoder.weight
    for module in (base, made):
        wanted = [one for key, one in module.named_parameters() if ".aim." not in key and one.requires_grad]
        optimiser = torch.optim.SGD(wanted, 0.1)
        for _ in range(0 if name == "fold" else 3):  # which is for inference
            optimiser.zero_grad()
            module(x).square().sum().backward()
            optimiser.step()
    torch.testing.assert_close(
        made.eval()(x), base.eval()(x), rtol=0, atol=0 if name not in ("fold", "merge") else 1e-5
    )
