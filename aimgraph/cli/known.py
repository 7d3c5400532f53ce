"""Names and numbers that help texts show, without the modules that define them, most of which import torch.

Each one names the place of its definition. ``tests/cli/test_known.py`` compares the two, so that one can't change
without the other.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Known:
    """Something that the command line has to know before torch is imported.

    Attributes:
        value: Names that an option takes, or its default.
        place: Where that is defined, ``module:attribute``; several names are joined by dots.
        without: Names that are defined there and are not for the command line.
    """

    value: Any
    place: str
    without: tuple[str, ...] = ()


PRESETS = Known(("article", "author"), "aimgraph.presets:")
SOURCES = Known(
    ("parameter", "ones_conv", "coordinates"), "aimgraph.runtime.parts:_BUILT_IN.source", without=("given",)
)
READS = Known(("reshape", "resize"), "aimgraph.runtime.parts:_BUILT_IN.read")
BLOCKS = Known(("conv_sigmoid",), "aimgraph.runtime.parts:_BUILT_IN.block")
POOLS = Known(("batch",), "aimgraph.config:AimConfig.pool")
MODES = Known(("replace", "gated"), "aimgraph.config:AimConfig.mode")
CARRIES = Known(("gradient", "state"), "aimgraph.config:AimConfig.carry")
STARTS = Known(("zero_reads", "zero_values", "drawn"), "aimgraph.config:AimConfig.start")
LOWERINGS = Known(("split", "concat"), "aimgraph.config:AimConfig.lowering")
OPTIONS = Known(
    (
        *("name", "shape", "budget", "source", "trainable", "seed", "sites", "exclude", "within", "read", "updates"),
        *("block", "pool", "mode", "carry", "rate", "write_in_eval", "start", "start_scale", "lowering"),
    ),
    "aimgraph.config:AimConfig.model_fields",
)
BUDGET = Known(0.0126, "aimgraph.config:ARTICLE_BUDGET")

WHATS = Known(("values", "memory", "trainable", "all"), "aimgraph.checkpoint.entries:What")
MEMORIES = Known(("constant", "input", "state", "inside"), "aimgraph.onnx.prepare:Memory", without=("none",))
HOWS = Known(("copy", "zero"), "aimgraph.widen.build:How")

FROZEN_FORMS = Known(("full", "biases", "lora", "memory", "lean"), "aimgraph.bench.frozen:FROZEN")
FORMS = Known(
    (*("base", "floor", "split", "concat", "folded"), *("fused base", "fused floor", "fused folded")),
    "aimgraph.bench.forms:FORMS",
)

LEVELS = Known(("structure", "numeric", "onnx", "widen", "source"), "aimgraph.zoo_check.manifest:LEVELS")
LIBRARIES = Known(("torchvision", "timm", "zoo"), "aimgraph.zoo_check.sources:SOURCES")
SECONDS = Known(900.0, "aimgraph.units.runner:Limits.seconds")
GIBIBYTES = Known(10.0, "aimgraph.units.runner:Limits.gibibytes")
ZOO = Known(("efficientnet_lite0", "mlp", "resnet50_keras", "vgg16"), "aimgraph.models_zoo.loader:ZOO")
