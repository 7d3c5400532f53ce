"""From a model to a program."""
