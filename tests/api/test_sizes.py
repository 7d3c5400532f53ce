"""A model that was transformed at 224 x 224 runs wherever its base does."""

import pytest
import torch

import aimgraph
from aimgraph.models_zoo.loader import load_model
from tests.nets import randomise

MODELS = ("torchvision/mobilenet_v3_small", "torchvision/squeezenet1_1", "timm/resnet10t", "timm/convnext_atto")


@pytest.mark.parametrize("name", MODELS)
def test_other_batches_and_resolutions(name: str) -> None:
    torch.manual_seed(0)
    base = load_model(name).eval()
    aim = aimgraph.transform(base, torch.zeros(2, 3, 224, 224)).eval()
    reading = randomise(aimgraph.transform(base, torch.zeros(2, 3, 224, 224))).eval()
    with torch.no_grad():
        for shape in ((1, 3, 224, 224), (7, 3, 224, 224), (1, 3, 160, 256), (7, 3, 97, 129)):
            x = torch.randn(shape)
            assert torch.equal(aim(x), base(x))
            assert not torch.equal(reading(x), base(x))
            torch.testing.assert_close(reading(x)[:1], reading(x[:1]), rtol=1e-3, atol=1e-4)
