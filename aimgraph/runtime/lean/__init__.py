"""Forms of torch's functions that keep less for the backward pass where what they compute with is fixed."""

from aimgraph.runtime.lean import activations, convolution, gates, max_pooling, normalisation, shapes_only  # noqa: F401
