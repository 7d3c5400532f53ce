"""The seed's networks and what the seed did to them, counted."""

import pytest
import torch

import aimgraph
from aimgraph import presets
from aimgraph.models_zoo import mlp, resnet50_keras, vgg16
from aimgraph.models_zoo.resnet_keras import keras_parameters

X = torch.zeros(1, 3, 224, 224)


def test_keras_parameters_of_the_control() -> None:
    assert keras_parameters(resnet50_keras(num_classes=120, stem_stride=2)) == 23_833_592
    assert sum(p.numel() for p in resnet50_keras(num_classes=120).parameters()) == 23_833_592 - 53_120


def test_known_parameter_counts() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in vgg16().parameters()) == 138_357_544  # configuration D in the VGG article
        assert sum(p.numel() for p in mlp(784, (512, 512), 10).parameters()) == 669_706


@pytest.mark.parametrize(("classes", "total"), [(120, 26_714_360), (100, 26_673_380)])
def test_author_comes_to_the_notebooks_count(classes: int, total: int) -> None:
    aim = aimgraph.transform(resnet50_keras(classes, stem_stride=1), X, config=presets.author())
    assert keras_parameters(aim) == total
    plan = aimgraph.plan(aim)
    written, unwritten = plan.memories
    assert written.size == unwritten.size == 50_176
    assert (len(written.reads), len(unwritten.reads)) == (4, 12)
    assert [update.spot.where for update in written.updates] == ["stages.0.0", "stages.1.0", "stages.2.0"]
    assert [item.path for item in written.dropped] == ["stages.3.0"]
    assert written.source_parameters + unwritten.source_parameters == 2_099_200
    assert sum(read.parameters for memory in plan.memories for read in memory.reads) == 388_352
    blocks = aim.get_submodule("aim.memory.updates")
    assert sum(keras_parameters(block) for block in blocks) == 393_216


def test_author_reads_what_the_notebook_reads() -> None:
    """Convolution blocks see the latest update, identity blocks the memory that nothing writes."""
    with torch.device("meta"):
        base = resnet50_keras(120, stem_stride=1)
    written, unwritten = aimgraph.plan(base, X, config=presets.author()).memories
    values = {read.site: read.calls[0].value for read in written.reads}
    assert values == {f"stages.{stage}.0.conv1": stage for stage in range(4)}
    assert all(call.value == 0 for read in unwritten.reads for call in read.calls)
    assert not {read.site for read in unwritten.reads} & set(values)


def test_author_runs_and_trains() -> None:
    torch.manual_seed(0)
    base = resnet50_keras(5, stem_stride=1)
    x = torch.randn(2, 3, 64, 64)
    aim = aimgraph.transform(base, x, config=presets.author()).train()
    aim(x).square().sum().backward()
    live = [name for name, p in aim.named_parameters() if name.startswith("aim.") and p.grad.abs().sum() > 0]
    assert "aim.memory.source.layer.weight" in live
    assert "aim.identity.source.layer.weight" in live
    assert sum(".updates." in name for name in live) > 10


@pytest.mark.parametrize("name", ["resnet", "vgg", "mlp"])
def test_article_on_any_base(name: str) -> None:
    torch.manual_seed(0)
    bases = {
        "resnet": (resnet50_keras(5), torch.randn(2, 3, 64, 64)),
        "vgg": (vgg16(5, hidden=32), torch.randn(2, 3, 32, 32)),
        "mlp": (mlp(10, (8, 8), 3), torch.randn(2, 10)),
    }
    base, x = bases[name]
    aim = aimgraph.transform(base, x, config=presets.article()).train()
    plan = aimgraph.plan(aim)
    assert plan.sites_read == plan.layers
    memory = plan.memories[0]
    assert memory.updates
    aim(x)
    assert aim.get_buffer("aim.memory.carry.state").any()
