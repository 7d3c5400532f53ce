"""What runs inside an emitted graph: sources, reads, updates, carried state. No compiler code."""
