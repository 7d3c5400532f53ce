"""Inputs of a model: given, guessed, bound to a forward, resized and written down."""
