"""What a memory costs: the forms that it can take, timed side by side in one process."""

from aimgraph.bench.forms import FORMS, build_forms, plain_maps
from aimgraph.bench.frozen import FROZEN
from aimgraph.bench.measure import Measured, Ratio, compare
from aimgraph.bench.report import draw_bench, print_bench
from aimgraph.bench.run import BenchReport, Cost, Setting, bench, peak_alone

__all__ = ["FORMS", "FROZEN", "BenchReport", "Cost", "Measured", "Ratio", "Setting"]
__all__ += ["bench", "build_forms", "compare", "draw_bench", "peak_alone", "plain_maps", "print_bench"]
