"""The page of a report in a browser."""

from pathlib import Path
from typing import Any

import pytest

from aimgraph.experiment.report import picture, write_report
from aimgraph.planning.colours import DARK_PAPER
from tests import browser as browsers
from tests.browser import opened
from tests.experiment.made_results import made_experiment, with_troubles

MANY = ["base", *(f"an-arm-with-quite-a-long-name-{place}" for place in range(15))]
SECTIONS = ("arms", "comparisons", "seconds", "curves", "costs", "probes", "predictions", "lost", "still", "recipe")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(with_troubles(made_experiment()), folder)
    return folder / "report.html"


def background(page: Any) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.mark.parametrize("scripts", [True, False])
def test_it_opens_alone_and_has_all_sections(browser: Any, report: Path, scripts: bool) -> None:
    with opened(browser, report, scripts=scripts) as found:
        assert found.requests == []
        assert found.problems == []
        for name in SECTIONS:
            assert found.page.locator(f"section#{name}").is_visible(), name
        pictures = found.page.locator("svg").all()
        assert len(pictures) == 10
        assert all((one.bounding_box() or {"width": 0})["width"] > 300 for one in pictures)
        assert found.page.locator("#arms tbody tr").count() == 4


@pytest.mark.parametrize("arms", [["base", "static"], MANY], ids=["two arms", "sixteen"])
def test_it_fits_a_phone(browser: Any, tmp_path: Path, arms: list[str]) -> None:
    write_report(with_troubles(made_experiment(arms)), tmp_path)
    with opened(browser, tmp_path / "report.html", width=380) as found:
        assert found.overflow() <= 0
        sizes = found.page.evaluate(
            "[...document.querySelectorAll('svg text')].map("
            "one => parseFloat(one.getAttribute('font-size')) * Math.hypot(one.getScreenCTM().a, one.getScreenCTM().b))"
        )
        assert min(sizes) >= 9.5
        for one in found.page.locator("svg").all():
            box = one.bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 380
        cut = found.page.evaluate(
            "[...document.querySelectorAll('svg')].flatMap(svg => [...svg.querySelectorAll('text')].filter(one => {"
            "const a = one.getBoundingClientRect(), b = svg.getBoundingClientRect();"
            "return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1"
            "}).map(one => one.textContent))"
        )
        assert cut == []


def test_dark_mode(browser: Any, report: Path) -> None:
    red, green, blue = (int(DARK_PAPER[at : at + 2], 16) for at in (1, 3, 5))
    for dark, wanted in ((False, "rgb(255, 255, 255)"), (True, f"rgb({red}, {green}, {blue})")):
        with opened(browser, report, dark=dark) as found:
            assert background(found.page) == wanted
            line = found.page.locator("#curves polyline").first
            assert line.evaluate("one => getComputedStyle(one).stroke") != wanted


def test_the_table_of_arms_sorts(browser: Any, report: Path) -> None:
    with opened(browser, report) as found:
        first = found.page.locator("#arms tbody tr:first-child td:first-child")
        button = found.page.locator("#arms th button", has_text="test accuracy")
        assert first.text_content() == "base"
        button.click()
        assert first.text_content() == "wide"
        assert button.locator("xpath=..").get_attribute("aria-sort") == "descending"
        button.press("Enter")
        assert first.text_content() == "base"
        found.page.locator("#arms th button", has_text="kind").click()
        assert first.text_content() == "update"
        assert found.problems == []


def test_what_people_wrote_is_text(browser: Any, report: Path) -> None:
    with opened(browser, report) as found:
        assert "<script>alert('x')</script>" in found.page.locator("#lost").inner_text()
        assert found.page.locator("script").count() == 1


def test_the_picture_stands_alone(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "picture.svg").write_text(picture(made_experiment()), encoding="utf-8")
    with opened(browser, tmp_path / "picture.svg", dark=True) as found:
        assert found.problems == []
        assert found.page.locator("rect").first.evaluate("one => getComputedStyle(one).fill") == "rgb(255, 255, 255)"


def test_a_missing_browser_skips_unless_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browsers.shutil, "which", lambda name: None)
    monkeypatch.delenv("AIMGRAPH_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        browsers.executable()
    monkeypatch.setenv("AIMGRAPH_BROWSER", "required")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        browsers.executable()
