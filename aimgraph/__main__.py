"""``python -m aimgraph``."""

from aimgraph.cli import main

main()
