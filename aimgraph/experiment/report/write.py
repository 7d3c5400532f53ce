"""A report as files."""

import json
from pathlib import Path

from aimgraph.errors import ConfigError
from aimgraph.experiment.report.page import html_page, markdown_page
from aimgraph.experiment.results import Experiment
from aimgraph.runtime.given import folder_of, written_to


def write_report(experiment: Experiment, folder: Path) -> None:
    """Write ``report.html``, ``report.md`` and ``results.json``.

    The page is one file that needs nothing else, no network and no script. All texts are made before the first is
    written.

    Args:
        experiment: What was run.
        folder: Where to; it is made if missing.

    Raises:
        ConfigError: Nothing can be written there.
    """
    files = {
        "results.json": json.dumps(experiment.to_dict(), indent=1) + "\n",
        "report.md": markdown_page(experiment),
        "report.html": html_page(experiment),
    }
    for name, text in files.items():
        folder_of(folder / name, ConfigError)
        with written_to(folder / name, ConfigError):
            (folder / name).write_text(text, encoding="utf-8")
