"""Pages in a real browser: headless Chromium, driven by Playwright.

Where there is none, tests that ask for one are skipped and say so. ``AIMGRAPH_BROWSER=required`` makes them fail.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


@dataclass
class Opened:
    """A page that is open.

    Attributes:
        page: Playwright's page.
        requests: Addresses that it asked for, but for its own file.
        problems: What it wrote to the console, and errors of its scripts.
    """

    page: Any
    requests: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def overflow(self) -> float:
        """By how many pixels it is wider than the window."""
        return float(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def executable() -> str:
    """The path of a browser; the test is skipped, or fails, where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is not None and find_spec("playwright"):
        return found
    missing = "no Chromium: apt-get install chromium" if found is None else "no Playwright: pip install playwright"
    if os.environ.get("AIMGRAPH_BROWSER") == "required":
        pytest.fail(f"{missing} (AIMGRAPH_BROWSER=required)")
    pytest.skip(missing)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser for the tests of a file: while it runs, so does an event loop, which others may not expect."""
    path = executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opened(
    browser: Any, file: Path, *, width: int = 1120, dark: bool = False, scripts: bool = True
) -> Iterator[Opened]:
    """Open a file in a window of that many pixels, in light or dark mode."""
    mode = "dark" if dark else "light"
    size = {"width": width, "height": 900}
    context = browser.new_context(color_scheme=mode, viewport=size, java_script_enabled=scripts)
    found = Opened(context.new_page())
    found.page.on("request", lambda one: found.requests.append(one.url) if one.url != file.as_uri() else None)
    found.page.on("console", lambda one: found.problems.append(one.text))
    found.page.on("pageerror", lambda one: found.problems.append(str(one)))
    found.page.goto(file.as_uri())
    yield found
    context.close()
