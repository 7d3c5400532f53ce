"""The page of a report, as text and in a browser."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import aimgraph
from aimgraph.errors import ConfigError
from aimgraph.models_zoo import resnet50_keras
from aimgraph.web import page as pages
from tests.browser import opened
from tests.nets import NETS, build, randomise


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory with state that was trained, and a second one."""
    base, x = build("residual")
    configs = [
        aimgraph.AimConfig(name="written", shape=(2, 2, 3), updates="stages", carry="state"),
        aimgraph.AimConfig(name="still", shape=(4,), sites=("block.*", "head")),
    ]
    aim = randomise(aimgraph.transform(base, x, config=configs))
    aim.train()(x)
    return aimgraph.report(aim, tmp_path_factory.mktemp("web") / "deep" / "plan.html", examples=x)


def data(path: Path, name: str) -> Any:
    text = path.read_text(encoding="utf-8")
    start = text.index(f'id="part0-{name}">') + len(f'id="part0-{name}">')
    return json.loads(text[start : text.index("</script>", start)])


@pytest.mark.parametrize("name", list(NETS))
def test_every_kind_of_layer_has_its_equation(name: str, tmp_path: Path) -> None:
    base, x = build(name)
    plan = aimgraph.plan(base, x)
    path = aimgraph.report(base, tmp_path / "plan.html", x)
    details = data(path, "details")
    told = [read for row in details.values() for read in row["reads"]]
    kinds = {site.kind for site in plan.sites}
    assert {read["equation"].partition(" = ")[2].partition("(")[0] for read in told} == kinds
    for read in told:
        shapes = dict(map(tuple, read["shapes"]))
        assert {"x", "m", "Wm", "y"} <= shapes.keys()
    assert data(path, "plan") == json.loads(json.dumps(plan.to_dict()))


def test_shapes_are_those_of_the_tensors(tmp_path: Path) -> None:
    base = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.Flatten(), nn.Linear(8 * 9, 5, bias=False))
    path = aimgraph.report(base, tmp_path / "plan.html", torch.zeros(2, 3, 8, 8))
    details = {row["title"]: row for row in data(path, "details").values()}
    (conv,) = details["0"]["reads"]
    assert conv["equation"] == "y = Conv2d(x; Wx, b) + Conv2d(m; Wm)"
    assert dict(map(tuple, conv["shapes"])) | {"m": "", "Wm": ""} == {
        "x": "B x 3 x 8 x 8",
        "Wx": "8 x 3 x 3 x 3",
        "b": "8",
        "m": "",
        "Wm": "",
        "y": "B x 8 x 3 x 3",
    }
    (linear,) = details["2"]["reads"]
    assert linear["equation"] == "y = Linear(x; Wx) + Linear(m; Wm)"


def test_what_does_not_read_says_why(tmp_path: Path) -> None:
    base, x = build("activated")
    details = data(aimgraph.report(base, tmp_path / "plan.html", x), "details")
    (row,) = (row for row in details.values() if row["title"].startswith("0"))
    assert any("its own forward calls torch.relu" in text for text in row["remarks"])


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><b>"
    base = nn.Sequential(nn.Linear(4, 4))
    base.add_module(evil.replace(".", ""), nn.Linear(4, 2))
    text = aimgraph.report(base, tmp_path / "plan.html", torch.zeros(2, 4)).read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_resnet50_is_quick_and_small(tmp_path: Path) -> None:
    plan = aimgraph.plan(resnet50_keras(), torch.zeros(1, 3, 224, 224))
    started = time.process_time()
    path = aimgraph.report(plan, tmp_path / "plan.html")
    assert time.process_time() - started < 5
    assert path.stat().st_size < 2_000_000


def test_without_jinja2_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    base, x = build("conv2d")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    pages._templates.cache_clear()
    with pytest.raises(ConfigError, match="pip install 'jinja2"):
        aimgraph.report(aimgraph.plan(base, x), tmp_path / "plan.html")


def test_a_notebook_shows_a_fragment_that_keeps_its_styles_to_itself() -> None:
    base, x = build("residual")
    plan, aim = aimgraph.plan(base, x), aimgraph.transform(base, x)
    for shown in (plan._repr_html_(), aim._repr_html_()):
        assert shown is not None
        assert shown.startswith('<div class="aimgraph"')
        assert "<script" not in shown
        assert " id=" not in shown
        style = shown[shown.index("<style>") + 7 : shown.index("</style>")]
        for line in style.strip().splitlines():
            rule = line.strip()
            if "{" in rule and not rule.startswith("@"):
                assert rule.startswith(".aimgraph"), rule
        assert "block" in shown


def test_it_opens_alone_in_light_and_dark(browser: Any, written: Path) -> None:
    papers = []
    for dark in (False, True):
        with opened(browser, written, dark=dark) as found:
            assert found.requests == []
            assert found.problems == []
            assert found.overflow() <= 0
            papers.append(found.page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert found.page.locator(".heat").count() == 3 * 3 + 1
            assert found.page.locator(".columns").count() == 2
    assert papers == ["rgb(255, 255, 255)", "rgb(20, 23, 28)"]


def test_it_fits_a_phone(browser: Any, written: Path) -> None:
    with opened(browser, written, width=380) as found:
        assert found.overflow() <= 0
        row = found.page.locator("[role=treeitem]:visible").nth(1)
        row.click()
        box = found.page.locator(".panel").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 380
        assert box["y"] + box["height"] <= 900


def chosen(page: Any) -> str:
    return str(page.locator("[aria-selected=true] .label").inner_text())


def test_a_click_shows_details_and_opens_a_module(browser: Any, written: Path) -> None:
    with opened(browser, written) as found:
        page = found.page
        group = page.locator("[role=treeitem]", has=page.locator(".label", has_text="block")).first
        before = page.locator("[role=treeitem]:visible").count()
        was = group.get_attribute("aria-expanded")
        group.click()
        assert group.get_attribute("aria-expanded") != was
        assert page.locator("[role=treeitem]:visible").count() != before
        page.locator(".all").click()
        layer = page.locator("[role=treeitem]", has=page.locator(".label", has_text="down")).first
        layer.click()
        assert chosen(page) == "down"
        panel = page.locator(".panel").inner_text()
        assert "y = Conv2d(x; Wx, b) + Conv2d(m; Wm)" in panel
        assert "without it, outputs move by" in panel
        page.locator(".close").click()
        assert page.locator("[aria-selected=true]").count() == 0
        assert found.problems == []


def test_the_keyboard_is_enough(browser: Any, written: Path) -> None:
    with opened(browser, written) as found:
        page = found.page
        page.locator("[role=treeitem]").first.focus()
        focused = "document.activeElement.querySelector('.label').textContent"
        page.keyboard.press("ArrowDown")
        second = page.evaluate(focused)
        page.keyboard.press("Enter")
        assert chosen(page) == second
        page.keyboard.press("Escape")
        assert page.locator("[aria-selected=true]").count() == 0
        assert page.evaluate(focused) == second
        page.keyboard.press("End")
        assert page.evaluate(focused) == "output"
        page.keyboard.press("Home")
        page.locator("[aria-expanded]").first.focus()
        group = page.locator("[aria-expanded]").first
        opens = group.get_attribute("aria-expanded") == "false"
        page.keyboard.press("ArrowRight" if opens else "ArrowLeft")
        assert group.get_attribute("aria-expanded") == ("true" if opens else "false")
        page.keyboard.press("ArrowLeft" if opens else "ArrowRight")
        assert group.get_attribute("aria-expanded") == ("false" if opens else "true")
        assert page.locator("[role=treeitem][tabindex='0']").count() == 1


def test_search_finds_layers_in_closed_modules(browser: Any, written: Path) -> None:
    with opened(browser, written) as found:
        page = found.page
        page.locator(".find").fill("block.3")
        assert page.locator(".count").inner_text() == "1 found"
        assert page.locator(".hit").is_visible()
        page.locator(".find").press("Enter")
        assert page.locator(".panel h4").inner_text() == "block.3"
        page.locator(".find").press("Escape")
        assert page.locator(".hit").count() == 0


def test_the_table_sorts_filters_and_leads_to_the_graph(browser: Any, written: Path) -> None:
    with opened(browser, written) as found:
        page = found.page
        norms = "[...document.querySelectorAll('.layers tbody tr')].map(r => Number([...r.cells].at(%d).dataset.key))"
        titles = page.locator(".layers th").all_inner_texts()
        place = [title.strip() for title in titles].index("norm")
        page.locator(".layers th button", has_text="norm").click()
        down = page.evaluate(norms % place)
        assert down == sorted(down, reverse=True)
        page.locator(".layers th button", has_text="norm").click()
        assert page.evaluate(norms % place) == sorted(down)
        page.locator(".filter").fill("still")
        assert page.locator(".layers tbody tr:visible").count() == 3
        page.locator(".to:visible", has_text="head").click()
        assert chosen(page) == "head"
        assert page.locator("[aria-selected=true]").is_visible()


def test_the_plan_is_saved_and_the_config_copied(browser: Any, written: Path) -> None:
    with opened(browser, written) as found:
        page = found.page
        with page.expect_download() as download:
            page.locator(".save").click()
        assert download.value.suggested_filename == "plan.json"
        saved = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
        assert [memory["config"]["name"] for memory in saved["memories"]] == ["written", "still"]
        page.locator(".copy").click()
        page.wait_for_function("document.querySelector('.done').textContent !== ''")
        config = page.locator("#part0-config").inner_text()
        start = config.index("# as a file for --config") + len("# as a file for --config")
        configs = [aimgraph.AimConfig.from_json(one) for one in json.loads(config[start:])]
        assert configs[0] == aimgraph.AimConfig(name="written", shape=(2, 2, 3), updates="stages", carry="state")


def test_a_reader_hears_what_is_drawn(browser: Any, written: Path) -> None:
    with opened(browser, written) as found:
        labels = found.page.evaluate(
            "[...document.querySelectorAll('[role=treeitem]')].map(one => one.getAttribute('aria-label'))"
        )
        assert all(labels)
        assert any("writes update 1 of written" in label for label in labels)
        assert any("reads the source of still, norm" in label for label in labels)
        unnamed = found.page.evaluate(
            "[...document.querySelectorAll('button, input, svg[role=img]')].filter(one => !(one.textContent.trim() ||"
            " one.getAttribute('aria-label') || one.getAttribute('aria-labelledby'))).length"
        )
        assert unnamed == 0
