"""The base's own graph as data: which layer takes what another one gives. Nothing here touches a graph of torch.fx."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step of a forward: an input, a layer, a module that is one call, a place where branches meet, or the output.

    What stands between two steps (norms, activations, reshapes) belongs to the edge between them.

    Attributes:
        kind: ``input``, ``layer``, ``opaque``, ``join`` or ``output``.
        path: Path of the layer or module; of a join, of the module whose forward computes it, ``.<operation>``.
        name: Class name of the layer or module, or the operation that joins; empty for inputs and the output.
        shape: Of what it gives; empty if that is no tensor. `-r` stands for r times the batch size, and 0 for a size
            that changes with the batch in another way.
        inputs: Numbers of the earlier steps that it takes values from, ascending.
        layers: Paths of the sites and of the skipped layers that it calls.
        nodes: Names of the nodes of the graph from its own up to the next step.
    """

    kind: str
    path: str
    name: str
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    layers: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
