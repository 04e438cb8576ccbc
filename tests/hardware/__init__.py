"""What only a node with real GPUs can tell: run.sh says how."""
