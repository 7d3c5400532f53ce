"""A plan as a table, as JSON and as a picture."""

import json
from pathlib import Path

import pytest

import aimgraph
from tests.nets import build


def test_the_table_shows_every_site_and_reason() -> None:
    base, x = build("residual")
    text = str(aimgraph.plan(base, x, updates="stages", exclude=("head",), lowering="concat"))
    for word in (
        "stem.0",
        "block.3",
        "8x8",
        "update 1",
        "concat",
        "sites read / called / layers present: 4 / 5 / 5",
        "parameters: ",
    ):
        assert word in text
    assert "head" in text.partition("left as they are")[2].partition("not chosen")[0]
    base, x = build("activated")
    assert "its own forward calls torch.relu on the input" in str(aimgraph.plan(base, x)).replace("\n", "")
    assert max(len(line) for line in text.splitlines()) <= 120


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
