"""Where a memory's initial value comes from, one kind a file."""

from aimgraph.runtime.sources import ones_conv as ones_conv
from aimgraph.runtime.sources import parameter as parameter
