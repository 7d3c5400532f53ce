"""The compiler passes, one per file. Import them as ``aimgraph.passes``."""

if __name__ != "aimgraph.passes":
    raise ImportError("import aimgraph.passes instead: 'passes' would be a second copy of the same code")

from aimgraph.compiler.program import Pass
from aimgraph.passes.concat_layers import ConcatLayers as ConcatLayers
from aimgraph.passes.expose_state import ExposeState as ExposeState
from aimgraph.passes.find_sites import FindSites as FindSites
from aimgraph.passes.fold_batchnorm import FoldBatchnorm as FoldBatchnorm
from aimgraph.passes.fold_memory import FoldMemory as FoldMemory
from aimgraph.passes.insert_memory import InsertMemory as InsertMemory
from aimgraph.passes.insert_updates import InsertUpdates as InsertUpdates
from aimgraph.passes.make_lean import MakeLean as MakeLean
from aimgraph.passes.merge_maps import MergeMaps as MergeMaps
from aimgraph.passes.place_updates import PlaceUpdates as PlaceUpdates
from aimgraph.passes.plan_memory import PlanMemory as PlanMemory
from aimgraph.passes.remove_dead import RemoveDead as RemoveDead
from aimgraph.passes.split_concat import SplitConcat as SplitConcat
from aimgraph.passes.widen_channels import WidenChannels as WidenChannels

PLANNING: tuple[Pass, ...] = (FindSites(), PlaceUpdates(), PlanMemory())


EMITTING: tuple[Pass, ...] = (InsertMemory(), InsertUpdates(), SplitConcat(), ConcatLayers(), RemoveDead())


FOLDING: tuple[Pass, ...] = (FoldMemory(), FoldBatchnorm(), MergeMaps(), RemoveDead())


EXPORTING: tuple[Pass, ...] = (ExposeState(),)


FREEZING: tuple[Pass, ...] = (MakeLean(),)


WIDENING: tuple[Pass, ...] = (WidenChannels(parameters=1.5),)
