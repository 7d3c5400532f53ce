"""The report on a transformed module."""

import pytest
import torch

import aimgraph
from tests.nets import build, randomise


@pytest.mark.parametrize("name", ["residual", "functional_dropout", "tokens", "grouped"])
def test_a_fresh_transform_verifies(name: str) -> None:
    base, x = build(name)
    aim = aimgraph.transform(base, x)
    report = aimgraph.verify(base, aim)
    assert report.ok, str(report)
    assert len(report.checks) == 8
    assert report.max_difference == 0
    assert report.to_dict()["ok"] is True
    assert "bit-identical" in str(report)


@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_a_trained_memory_verifies_and_differs(lowering: str) -> None:
    base, x = build("grouped")
    aim = randomise(aimgraph.transform(base, x, lowering=lowering))
    report = aimgraph.verify(base, aim)
    assert report.ok, str(report)
    assert report.max_difference > 1e-3


def test_a_changed_base_is_found() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x)
    with torch.no_grad():
        aim.get_parameter("head.bias").add_(1)
    report = aimgraph.verify(base, aim)
    assert not report.ok
    assert {check.name for check in report.checks if not check.ok} >= {"base weights are unchanged"}
    assert "FAILED" in str(report)


def test_nothing_changes() -> None:
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base, x, updates="stages", carry="state"))
    before = {key: value.clone() for key, value in aim.state_dict().items()}
    rng = torch.get_rng_state()
    aimgraph.verify(base, aim)
    assert all(torch.equal(value, aim.state_dict()[key]) for key, value in before.items())
    assert torch.equal(rng, torch.get_rng_state())


def test_only_transformed_modules() -> None:
    base, _ = build("residual")
    with pytest.raises(aimgraph.PlanError, match=r"verify needs the result of aimgraph\.transform, this is a Residual"):
        aimgraph.verify(base, base)
