"""The command line: ``aimgraph plan|transform|export|verify|draw MODEL`` and ``aimgraph zoo``."""

from aimgraph.cli.main import main

__all__ = ["main"]
