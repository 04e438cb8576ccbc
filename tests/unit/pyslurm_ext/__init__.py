"""Unit tests of pyslurm_ext."""
