"""Many pieces of work, each in a process of its own within limits, kept as they come; on this machine or on Ray."""
