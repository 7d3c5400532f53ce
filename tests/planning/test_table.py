"""A plan as a table, as JSON and as a picture."""

import io
import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from torch import Tensor, nn

import aimgraph
from aimgraph.models_zoo.loader import load_model
from aimgraph.planning.plan import Plan
from tests.nets import build


def test_the_table_shows_every_site_and_reason() -> None:
    base, x = build("residual")
    plan = aimgraph.plan(base, x, updates="stages", exclude=("head",), lowering="concat")
    text = plan.text(every_layer=True)
    for word in (
        "stem.0",
        "block.3",
        "8x8",
        "update 1",
        "concat",
        "sites read / called / layers present: 4 / 5 / 5",
        " parameters, inputs 2x3x8x8",
    ):
        assert word in text
    assert "head (Linear): not chosen" in text.partition("left as they are: 1")[2]
    assert "not chosen: 1" in str(plan).partition("left as they are: 1")[2]
    assert "head" not in str(plan)
    base, x = build("activated")
    assert "its own forward calls torch.relu on the input" in " ".join(str(aimgraph.plan(base, x)).split())


def test_json_holds_the_same() -> None:
    base, x = build("residual")
    plan = aimgraph.plan(base, x, updates="stages")
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["totals"]["sites_read"] == plan.sites_read == 5
    assert data["totals"]["added_parameters"] == plan.added_parameters
    assert [r["site"] for r in data["memories"][0]["reads"]] == [r.site for r in plan.memories[0].reads]
    predicate = aimgraph.plan(base, x, sites=lambda path, module: path == "head")
    assert json.loads(json.dumps(predicate.to_dict()))["totals"]["sites_read"] == 1


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_picture(ending: str, tmp_path: Path) -> None:
    base, x = build("residual")
    plan = aimgraph.plan(base, x, updates="stages", exclude=("head",))
    path = aimgraph.draw(plan, tmp_path / "deep" / f"plan.{ending}")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    if ending == "svg":
        for word in (b"stem.0", b"update 1", b"not chosen"):
            assert word in content


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    """Of a convolutional network and a transformer."""
    names, x = ("torchvision/resnet18", "timm/vit_tiny_patch16_224"), torch.zeros(1, 3, 224, 224)
    return {name: aimgraph.plan(load_model(name), x) for name in names}


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/vit_tiny_patch16_224"])
@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("every_layer", [False, True])
def test_a_plan_fits_a_terminal_and_breaks_no_name(
    name: str, width: int, every_layer: bool, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plans[name]
    terminal = io.StringIO()
    monkeypatch.setenv("COLUMNS", str(width))
    plan.print(Console(file=terminal, force_terminal=True, color_system=None), costs=True, every_layer=every_layer)
    lines = terminal.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    words = {word for line in lines for word in re.split(r"[\s,]+", line)}
    sites = [read.name for _, read in plan.reads]
    if every_layer:
        assert set(sites) <= words
    else:
        rows = {"layer3.0-1", "conv1", "fc"} if "resnet" in name else {"blocks.0-11", "patch_embed.proj", "head"}
        assert rows <= words
        assert not {site for site in sites if site.count(".") > 1} & words


def test_a_plan_begins_with_four_lines(plans: dict[str, Plan]) -> None:
    model, memory, added, start = plans["torchvision/resnet18"].text().splitlines()[:4]
    assert model == "ResNet: 11,689,512 parameters, inputs 1x3x224x224"
    assert memory == "memory 'memory': 7 x 7 x 1 = 49 values, read at 21 of 21 layers"
    assert added == "added: 87,641 parameters, 0.75% of the model's (budget 1.26%)"
    assert start == "at the start: computes what the model computes, bit for bit"
    assert "above the budget of 1.26%" in plans["timm/vit_tiny_patch16_224"].text().splitlines()[2]
    base, x = build("residual")
    told = aimgraph.plan(base, x, start="drawn", shape=(3,)).text(200).splitlines()
    assert told[1].startswith("memory 'memory': 3 values, read at 5 of 5 layers")
    assert told[2].endswith("of the model's (the shape is given)")
    assert "computes something else than the model" in told[3]


def test_rows_add_up_what_they_stand_for(plans: dict[str, Plan]) -> None:
    for plan in plans.values():
        found = [re.match(r"(\S+) +(\d+)   \S+ +(\S+) +(\d+) +([\d,]+)$", line) for line in str(plan).splitlines()]
        rows = [row for row in found if row is not None]
        assert sum(int(row[2]) for row in rows) == plan.sites_read
        assert sum(int(row[5].replace(",", "")) for row in rows) == sum(read.parameters for _, read in plan.reads)


def test_a_name_longer_than_the_terminal_is_whole() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a_name_that_is_longer_than_any_terminal_of_thirty_columns = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a_name_that_is_longer_than_any_terminal_of_thirty_columns(x)

    text = aimgraph.plan(Deep(), torch.zeros(2, 4)).text(30)
    assert "\na_name_that_is_longer_than_any_terminal_of_thirty_columns\n" in text
    others = [line for line in text.splitlines() if "terminal" not in line]
    assert max(map(len, others)) <= 30


def test_reasons_are_counted() -> None:
    base, x = build("residual")
    plan = aimgraph.plan(base, x, sites=("head",))
    assert "left as they are: 4 (--all, or every_layer=True, names each)" in str(plan)
    assert "  not chosen: 4" in str(plan)
    assert [f"  {item.path} ({item.kind}): not chosen" in plan.text(every_layer=True) for item in plan.skipped] == (
        [True] * 4
    )


def test_a_plan_in_a_line() -> None:
    base, x = build("residual")
    plan = aimgraph.plan(base, x, shape=(2, 2, 3))
    assert repr(plan).startswith(f"<Plan of {plan.model}: memory 'memory' 2x2x3, read at 5 of 5 layers, +")
    assert "\n" not in repr(plan)


def test_a_memory_above_its_budget_is_told_once() -> None:
    base, x = build("residual")
    with pytest.warns(UserWarning, match=r"already adds .* above the budget of 0.10%; give shape=") as told:
        aim = aimgraph.transform(base, x, budget=0.001)
    assert told[0].filename == __file__
    with warnings.catch_warnings(action="error"):
        aimgraph.refit(aim)
        aimgraph.transform(base, x, budget=50.0)
        aimgraph.transform(base, x, shape=(2, 2, 3), budget=0.001)
    part = nn.Sequential(base)
    with pytest.warns(UserWarning, match="above the budget"):
        aimgraph.transform(part, x, within="0", budget=0.001)


def test_brackets_in_a_name_are_shown() -> None:
    class Bold(nn.Linear):
        pass

    Bold.__name__ = "Bold[red]"
    base = nn.Sequential(Bold(3, 4), nn.Linear(4, 2))
    assert "Bold[red]" in str(aimgraph.plan(base, torch.zeros(2, 3), shape=(3,)))
