"""`pioletd`: the root monitor, the unprivileged server, and the life of a step on this node."""
