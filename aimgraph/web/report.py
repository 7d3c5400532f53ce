"""`report`: a model, its memory, and what reads and writes it, as one file of HTML."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aimgraph.errors import ConfigError
from aimgraph.runtime.given import folder_of, given_path, written_to
from aimgraph.web.subject import Subject


def report(what: Any, path: str | os.PathLike[str], examples: Any = None) -> Path:
    """Write a page that shows a network, its memories, and what reads and writes them.

    The page is one file. It needs no network, works with a keyboard, and has a light and a dark mode. A module that has
    been transformed is also shown with its values, and with the norms of its read weights once it is trained.

    Args:
        what: A plan (`aimgraph.plan`); a model, transformed, in part or not at all; or the folder of a checkpoint.
        path: The file to write, such as ``plan.html``; its folder is made if missing.
        examples: Inputs as for `aimgraph.transform`. A model that is not transformed is planned with them. For a
            transformed one, the report shows how far the outputs for them move when one read is switched off: as many
            forwards as there are reads, in eval mode, on a copy.

    Returns:
        The path.

    Raises:
        ConfigError: This is none of these, or nothing can be written there.
        ExampleInputError: The model does not run on the examples.
        PlanError: No memory can be placed in the model.
        CheckpointError: The folder holds no checkpoint.

    Example:
        >>> aimgraph.report(aim, "plan.html", examples=x)  # doctest: +SKIP
    """
    target = given_path(path, "the report")
    from aimgraph.web.looked_at import subjects_of  # heavy, and needed by few

    return write_page(subjects_of(what, examples), target)


def write_page(subjects: Sequence[Subject], target: Path) -> Path:
    """Write the page of subjects.

    Raises:
        ConfigError: Nothing can be written there.
    """
    from aimgraph.web.page import html_page

    text = html_page(subjects)
    folder_of(target, ConfigError)
    with written_to(target, ConfigError):
        target.write_text(text, encoding="utf-8")
    return target


def fragment(what: Any) -> str:
    """A plan or a transformed module as a notebook shows it."""
    from aimgraph.web.looked_at import subjects_of
    from aimgraph.web.page import html_fragment

    return html_fragment(subjects_of(what))
