"""The forms that are timed compute what they say."""

import copy

import pytest
import torch
from torch import Tensor, nn

import aimgraph
from aimgraph.bench import FORMS, build_forms, plain_maps
from aimgraph.errors import ConfigError
from tests.nets import NETS, build, randomise, run


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1))


def _conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=4),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 16, 4),
    )


def test_every_form_computes_what_its_name_says() -> None:
    base, x = _conv_net(), torch.randn(3, 3, 10, 10)
    base(x)  # statistics that are not those of a new norm
    forms = build_forms(base, x, [aimgraph.AimConfig(shape=(5, 5, 2))])
    assert tuple(forms) == FORMS
    given = {form: module.eval()(x) for form, module in forms.items()}
    for form in ("concat", "folded", "fused folded"):
        assert _close(given[form], given["split"])
    assert torch.equal(given["base"], base.eval()(x))
    assert _close(given["fused base"], given["base"])
    assert not _close(given["split"], given["base"])
    assert not _close(given["floor"], given["base"])
    norms = {form: sum(isinstance(m, nn.BatchNorm2d) for m in modules_called(module)) for form, module in forms.items()}
    assert norms == dict.fromkeys(FORMS[:5], 2) | dict.fromkeys(FORMS[5:], 0)


def modules_called(module: nn.Module) -> list[nn.Module]:
    called: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, *_: called.append(m)) for m in module.modules()]
    module(torch.randn(3, 3, 10, 10))
    for hook in hooks:
        hook.remove()
    return called


def test_the_floor_is_one_learned_map_per_site_and_nothing_else() -> None:
    base, x = _conv_net(), torch.randn(3, 3, 10, 10)
    aim = aimgraph.transform(base, x, start="drawn")
    floor = plain_maps(aim)
    added = {name: list(p.shape) for name, p in floor.named_parameters() if name.startswith("aim.")}
    assert list(added.values()) == [[1, 8, 10, 10], [1, 8, 4, 4], [1, 4]]
    assert not any("memory" in str(node.target) for node in floor.graph.nodes)
    trained = copy.deepcopy(floor).train()
    trained(x).sum().backward()
    assert all(p.grad is not None for p in trained.parameters())
    with torch.no_grad():
        for name, parameter in floor.named_parameters():
            if name.startswith("aim."):
                parameter.zero_()
    for mode in (True, False):
        assert torch.equal(floor.train(mode)(x), base.train(mode)(x))


@pytest.mark.parametrize("name", sorted(NETS))
def test_the_floor_of_any_network(name: str) -> None:
    base, x = build(name)
    aim = randomise(aimgraph.transform(base, x))
    leaves = any(call.opaque for memory in aimgraph.plan(aim).memories for read in memory.reads for call in read.calls)
    if leaves:
        with pytest.raises(ConfigError, match="kept as one call"):
            plain_maps(aim)
        return
    floor = plain_maps(aim)
    with torch.no_grad():
        for key, parameter in floor.named_parameters():
            if key.startswith("aim."):
                parameter.zero_()
    for mode in (True, False):
        torch.manual_seed(0)
        wanted = run(base.train(mode), x)
        torch.manual_seed(0)
        assert torch.equal(run(floor.train(mode), x), wanted)


def test_two_memories_have_one_floor() -> None:
    base, x = _conv_net(), torch.randn(3, 3, 10, 10)
    two = [aimgraph.AimConfig(name="a"), aimgraph.AimConfig(name="b", shape=(4, 4, 1))]
    forms = build_forms(base, x, two, ("floor", "fused floor"))
    for form in forms.values():
        assert sum(".maps." in str(node.target) for node in form.graph.nodes) == 3


def test_unknown_forms_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'narrow'.*there are base, floor"):
        build_forms(_conv_net(), torch.zeros(1, 3, 10, 10), [aimgraph.AimConfig()], ("narrow",))
