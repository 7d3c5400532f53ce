"""The keys of ``node.meta``."""

BY_BATCH = "aim_by_batch"
"""Key in ``node.meta``: the node gives another size or number at another batch size."""

OPAQUE_READS = "aim_opaque_reads"
"""Key in ``node.meta`` of such a call: (memory, call that reads) for each of the values it is given."""

ADDED = "aim_added"
"""Key in ``node.meta`` of every node that a pass inserted."""

OWNER = "aim_owner"
"""Key in ``node.meta``: path of the module whose forward makes the node; of a call, of the module which calls."""

READ = "aim_read"
"""Key in ``node.meta`` of a fitted view: (memory, name of the call that reads it)."""

SHAPES = "aim_shapes"
"""Key in ``node.meta``: the shapes of a tensor node at two batch sizes."""

NUMBERS = "aim_numbers"
"""Key in ``node.meta``: what a node that gives a whole number gives at two batch sizes."""

OUTPUT_OF = "output_of"
"""Key in ``node.meta``: paths of the modules whose result the node is."""

CALL = "aim_call"
"""Key in ``node.meta``: name of a direct call of a convolution or linear function."""

GUARDS = "aim_guards"
"""Key in ``node.meta``: path of the innermost module whose forward asked what the node asks again."""

EXPOSED = "aim_exposed"
"""Key in ``node.meta`` of an input that a memory has become: what is exposed."""

VALUE = "val"
"""Key in ``node.meta`` of a node that gives a tensor: a fake one like it."""

HAS_TENSORS = "aim_has_tensors"
"""Key in ``node.meta`` of a node that gives a collection with a tensor in it."""

OVERWRITTEN_BY = "aim_overwritten_by"
"""Key in ``node.meta``: the nodes that write to a tensor in place, in order."""
