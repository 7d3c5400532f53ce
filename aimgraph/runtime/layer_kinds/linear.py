"""Linear layers, `nn.Linear` and ``F.linear``: y = W x + b at every position, with W [O, C]."""

from torch import nn
from torch.nn import functional as F

from aimgraph.runtime.layer_kinds.kind import LayerKind, register_layer_kind

register_layer_kind(LayerKind(nn.Linear, F.linear))
