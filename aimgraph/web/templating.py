"""Templates of pages: where they are, and how what they show is escaped."""

from typing import Any

from aimgraph.errors import ConfigError
from aimgraph.web.formats import printable


def environment(*packages: str) -> Any:
    """A `jinja2.Environment` of the templates in the folders ``templates`` of packages, and of those here.

    What is shown is escaped in HTML, and control characters are left out. A name that a template does not know is an
    error.

    Args:
        packages: Their names, looked through in order.

    Raises:
        ConfigError: jinja2 can't be imported.
    """
    try:
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise ConfigError(
            f"a report needs jinja2, which can't be imported ({error}): pip install 'jinja2>=3.1'"
        ) from error
    loaders = [PackageLoader(package, "templates") for package in (*packages, "aimgraph.web")]
    return Environment(
        loader=ChoiceLoader(loaders),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )


def markup(text: str) -> Any:
    """Text that is HTML already, and stays as it is in a template."""
    from markupsafe import Markup

    return Markup(text)
