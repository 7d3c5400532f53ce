"""A module as the source of plain PyTorch."""
