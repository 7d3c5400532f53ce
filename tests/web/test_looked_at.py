"""What a report knows of plans, models and checkpoints."""

from pathlib import Path

import pytest
import torch
from torch import nn

import aimgraph
from aimgraph.errors import ConfigError
from aimgraph.web.looked_at import subjects_of
from tests.nets import build, randomise


def test_a_plan_is_shown_without_values() -> None:
    base, x = build("residual")
    (subject,) = subjects_of(aimgraph.plan(base, x))
    assert subject.held == {}
    assert subject.norms == {}
    assert subject.moved is None


def test_a_model_is_planned_and_tells_the_shapes_of_its_weights() -> None:
    base, x = build("residual")
    (subject,) = subjects_of(base, x)
    assert subject.shapes["stem.0"] == (8, 3, 3, 3)
    assert "stem.0" not in subject.biased
    assert "head" in subject.biased


@pytest.mark.parametrize("lowering", ["split", "concat"])
def test_norms_are_those_of_the_read_weights(lowering: str) -> None:
    base, x = build("conv2d")
    aim = aimgraph.transform(base, x, lowering=lowering)
    (subject,) = subjects_of(aim)
    assert subject.moved is False
    assert subject.weights is None
    assert set(subject.norms.values()) == {0.0}
    randomise(aim)
    (subject,) = subjects_of(aim)
    assert subject.moved is True
    for (memory, read), norm in subject.norms.items():
        assert norm == pytest.approx(float(aim.state_dict()[f"aim.{memory}.reads.{read}.weight"].norm()), rel=1e-6)


def test_a_memory_of_zeros_counts_as_moved_once_its_values_are() -> None:
    base, x = build("conv2d")
    aim = aimgraph.transform(base, x, start="zero_values")
    assert subjects_of(aim)[0].moved is False
    with torch.no_grad():
        aim.get_parameter("aim.memory.source.value").fill_(1.0)
    assert subjects_of(aim)[0].moved is True


def test_source_and_carried_state_are_shown_with_their_sum() -> None:
    base, x = build("residual")
    aim = aimgraph.transform(base, x, updates="stages", carry="state", shape=(2, 2, 3))
    randomise(aim)
    aim.train()(x)
    source, state, both = subjects_of(aim)[0].held["memory"]
    assert state.values.any()
    assert torch.equal(both.values, source.values + state.values)
    assert source.shape == (2, 2, 3)


def test_the_memory_set_in_use_is_shown() -> None:
    base, x = build("conv2d")
    aim = aimgraph.transform(base, x)
    aim.add_memory_set("b")
    with torch.no_grad():
        aim.get_parameter("aim.sets.b.memory.reads.0.weight").fill_(2.0)
    assert not any(subjects_of(aim)[0].norms.values())
    aim.use("b")
    (subject,) = subjects_of(aim)
    assert subject.norms["memory", "0"] > 0
    assert "'b'" in subject.remarks[0]


def test_every_transformed_part_is_a_subject() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.left(x) + self.right(x)

    model, x = Two(), torch.randn(2, 4)
    model.left = aimgraph.transform(nn.Sequential(model.left), x)
    model.right = aimgraph.transform(nn.Sequential(model.right), x)
    assert [subject.path for subject in subjects_of(model)] == ["left", "right"]


def test_switching_a_read_off_is_measured_and_leaves_the_module_as_it_was() -> None:
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(5, 4)
    aim = aimgraph.transform(base, x)
    randomise(aim)
    before = {key: value.clone() for key, value in aim.state_dict().items()}
    (subject,) = subjects_of(aim, x)
    with torch.no_grad():
        term = aim.get_submodule("aim.memory.reads.2")(aim.get_submodule("aim.memory.source")())
        wanted = aim.eval()(x)
    effect = subject.effects["memory", "2"]
    assert effect.largest == pytest.approx(float(term.abs().max()), rel=1e-5)
    assert effect.ratio == pytest.approx(float(term.expand(5, -1).norm() / wanted.norm()), rel=1e-5)
    assert effect.changed == pytest.approx(float(((wanted - term).argmax(1) != wanted.argmax(1)).double().mean()))
    assert all(torch.equal(value, before[key]) for key, value in aim.state_dict().items())


def test_effects_are_the_same_in_concat_form_and_with_a_state_that_eval_writes() -> None:
    base, x = build("residual")
    options = {"updates": "stages", "carry": "state", "write_in_eval": True}
    split = randomise(aimgraph.transform(base, x, **options))
    concat = aimgraph.transform(base, x, lowering="concat", **options)
    concat.load_state_dict(split.state_dict())
    one, other = (subjects_of(aim, x)[0].effects for aim in (split, concat))
    assert one.keys() == other.keys()
    assert any(effect.ratio > 0 for effect in one.values())
    for key, effect in one.items():
        assert effect.ratio == pytest.approx(other[key].ratio, rel=1e-4, abs=1e-6)


def test_a_checkpoint_is_shown_without_its_base(tmp_path: Path) -> None:
    base, x = build("residual")
    aim = randomise(aimgraph.transform(base, x, updates="stages", carry="state"))
    aimgraph.save(aim, tmp_path / "saved")
    (whole,), (saved,) = subjects_of(aim), subjects_of(tmp_path / "saved")
    assert saved.norms == pytest.approx(dict(whole.norms))
    assert saved.whole is False
    for one, other in zip(whole.held["memory"], saved.held["memory"], strict=False):
        assert one.title == other.title
        assert torch.equal(one.values, other.values)
    assert [read.name for _, read in saved.plan.reads] == [read.name for _, read in whole.plan.reads]
    assert [read.calls[0].value for _, read in saved.plan.reads] == [
        read.calls[0].value for _, read in whole.plan.reads
    ]


def test_a_checkpoint_of_values_alone_says_that_reads_are_drawn_again(tmp_path: Path) -> None:
    base, x = build("conv2d")
    aimgraph.save(aimgraph.transform(base, x, start="zero_values"), tmp_path, what="values")
    (saved,) = subjects_of(tmp_path)
    assert saved.norms == {}
    assert any("drawn again" in text for text in saved.remarks)
    assert [read.site for _, read in saved.plan.reads] == ["0", "2"]


def test_examples_that_the_model_does_not_take_are_refused() -> None:
    base, x = build("conv2d")
    with pytest.raises(aimgraph.ExampleInputError, match="fails on the examples: RuntimeError"):
        subjects_of(aimgraph.transform(base, x), x[:, :2])


def test_what_is_none_of_these_is_refused(tmp_path: Path) -> None:
    base, x = build("conv2d")
    with pytest.raises(ConfigError, match="this is a int"):
        subjects_of(3)
    with pytest.raises(ConfigError, match="give the model"):
        subjects_of(aimgraph.plan(base, x), x)
    with pytest.raises(ConfigError, match="the report is a path"):
        aimgraph.report(base, 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="can't be written"):
        aimgraph.report(aimgraph.plan(base, x), tmp_path)
