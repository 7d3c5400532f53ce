"""Where a memory's initial value comes from, one kind a file."""
# ruff: noqa: I001  (messages list them in this order, the default first)

from aimgraph.runtime.sources import parameter as parameter
from aimgraph.runtime.sources import ones_conv as ones_conv
from aimgraph.runtime.sources import coordinates as coordinates
from aimgraph.runtime.sources import given as given
