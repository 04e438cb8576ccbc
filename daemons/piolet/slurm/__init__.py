"""The one port to Slurm."""
