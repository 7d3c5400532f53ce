"""The ways to train a base that are compared: the same base and initial weights, and what each of them trains."""

from aimgraph.experiment.arms.made import Made, made

__all__ = ("Made", "made")
