"""Where a memory's initial value comes from, one kind a file."""

from aimgraph.runtime.sources.ones_conv import OnesConvSource
from aimgraph.runtime.sources.parameter import ParameterSource
from aimgraph.runtime.specs import Factory

SOURCES: dict[str, Factory] = {"parameter": ParameterSource, "ones_conv": OnesConvSource}
