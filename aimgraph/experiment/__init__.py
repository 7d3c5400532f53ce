"""Experiments: the same training for several arms and seeds, and what their differences say."""
