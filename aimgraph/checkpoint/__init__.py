"""Memories on disk: save, load, swap and compare them."""
