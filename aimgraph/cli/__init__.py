"""The command line: ``aimgraph plan|transform|export|verify|draw MODEL``."""

from aimgraph.cli.main import main

__all__ = ["main"]
