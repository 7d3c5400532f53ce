"""Packages that only some data needs."""

from importlib import import_module
from typing import Any

from aimgraph.errors import ConfigError


def import_extra(module: str, package: str, what: str) -> Any:
    """Import a module of the extra ``experiment``.

    Args:
        module: Its name, with dots.
        package: The package to install, as its users call it.
        what: What needs it.

    Raises:
        ConfigError: It can't be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{what} needs {package}, which can't be imported ({error}): pip install 'aimgraph[experiment]'"
        ) from error
