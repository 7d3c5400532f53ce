"""The errors that aimgraph raises.

Every message says what failed, at which layer, which shapes were seen and what to do about it.
A call that raises one of these has changed neither the base nor any file.
"""


class AimgraphError(Exception):
    """Base of every error that aimgraph raises on purpose."""


class ConfigError(AimgraphError, ValueError):
    """An option is invalid, or two options contradict each other."""


class ExampleInputError(AimgraphError, ValueError):
    """Example inputs are missing, can't be inferred, or don't fit the base."""


class TraceError(AimgraphError):
    """The base can't be traced into a graph.

    Args:
        message: What failed.
        where: Path of the innermost module that failed; "" for the base itself.
    """

    def __init__(self, message: str, where: str | None = None) -> None:
        super().__init__(message)
        self.where = where


class PlanError(AimgraphError):
    """No memory can be placed in this base as asked."""


class PassError(AimgraphError):
    """A compiler pass failed, or left a graph that doesn't verify."""


class ExportError(AimgraphError):
    """A model can't be exported, or the exported file disagrees with the model."""


class CheckpointError(AimgraphError):
    """A checkpoint can't be written, read or applied."""
