"""What stands below ``aim``: paths of what a transform adds are put together and told apart here."""

AIM = "aim"
"""Name of the child that holds everything a transform adds."""

CONCAT = f"{AIM}._concat"
"""Where layers over [x ; m] stand until they are lowered."""

OPAQUE = f"{AIM}._opaque"
"""Where modules that are kept as one call stand with the memory as an argument."""

SETS = f"{AIM}.sets"
"""Where the memory sets besides the default one stand, each in the same tree as that."""

DEFAULT = "default"
"""Name of the memory set that a transform makes."""


def aim_path(*names: str | int) -> str:
    """``aim.<name>.<name>...``, as ``aim_path(memory, "reads", site)`` or ``aim_path(memory, "updates", 0)``."""
    return ".".join((AIM, *map(str, names)))


def is_added(path: str) -> bool:
    """Whether a path, or a state-dict key, is of something that a transform has added."""
    return path.startswith(f"{AIM}.")


def below_aim(path: str) -> str:
    """A path without its ``aim.``."""
    return path.removeprefix(f"{AIM}.")


def is_memory(path: str) -> bool:
    """Whether a path is of a memory, or of part of one: a source, read or update."""
    return is_added(path) and not below_aim(path).startswith("_")


def is_read_path(path: str) -> bool:
    """Whether a path, or a state-dict key, is of a read layer."""
    return is_added(path) and ".reads." in path
