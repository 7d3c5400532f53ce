"""What stands where features are written into a memory, one kind a file."""

from aimgraph.runtime.specs import Factory
from aimgraph.runtime.updates.conv_sigmoid import ConvSigmoid

BLOCKS: dict[str, Factory] = {"conv_sigmoid": ConvSigmoid}
