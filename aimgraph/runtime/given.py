"""Arguments of public functions, looked at before anything is done with them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from aimgraph.errors import AimgraphError, ConfigError


def given_path(value: Any, what: str) -> Path:
    """A path that a function was given.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(value, str | os.PathLike):
        raise ConfigError(f"{what} is a path, and this is a {type(value).__name__}")
    return Path(value)


def given_module(value: Any, function: str) -> None:
    """See that a function was given a model.

    Raises:
        ConfigError: It was given something else.
    """
    if isinstance(value, type) and issubclass(value, nn.Module):
        raise ConfigError(f"{function} takes a model, and this is the class {value.__name__}: give one that it makes")
    if not isinstance(value, nn.Module):
        raise ConfigError(f"{function} takes a torch.nn.Module, and this is a {type(value).__name__}")


def given_number(value: Any, name: str, kind: type = float) -> None:
    """See that an option is a number, or a whole one, or is left out.

    Raises:
        ConfigError: It is not.
    """
    kinds = (int,) if kind is int else (int, float)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
        raise ConfigError(f"{name}={value!r}: give {'an integer' if kind is int else 'a number'}")


def given_names(value: Any, name: str) -> None:
    """See that an option is a list of names, none of them empty, or is left out.

    Raises:
        ConfigError: It is not.
    """
    if value is None:
        return
    if not isinstance(value, Sequence) or not all(isinstance(one, str) and one for one in value):
        raise ConfigError(f"{name}={value!r}: give a list of names")


@contextmanager
def written_to(path: Path, error: type[AimgraphError]) -> Iterator[None]:
    """While something is written to a path, or below it.

    Raises:
        AimgraphError: It can't be.
    """
    try:
        yield
    except OSError as failed:
        raise error(f"{path} can't be written: {failed.strerror or failed}") from failed


def folder_of(path: Path, error: type[AimgraphError]) -> Path:
    """The folder that a file is to be in, made if missing.

    Raises:
        AimgraphError: It can't be.
    """
    with written_to(path, error):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent
