"""Slurm's words."""
