"""How a memory is read at a site, one kind a file."""

from aimgraph.runtime.reads.reshape import reshape
from aimgraph.runtime.reads.resize import resize
from aimgraph.runtime.specs import Factory

READS: dict[str, Factory] = {"reshape": reshape, "resize": resize}
