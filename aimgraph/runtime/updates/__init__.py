"""What stands where features are written into a memory, one kind a file."""

from aimgraph.runtime.updates import conv_sigmoid as conv_sigmoid
