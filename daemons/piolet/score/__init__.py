"""`--score`: what a step's GPUs did, sample by sample, and how much of them that was."""
