"""Hooks and devices: what a container gets besides what its definition names. Pure, but for what looks at the node."""
