"""How a memory is read at a site, one kind a file."""

from aimgraph.runtime.reads import reshape as reshape
from aimgraph.runtime.reads import resize as resize
