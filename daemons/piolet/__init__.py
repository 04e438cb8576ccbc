"""Piolet: containers, vetting and saturation scores for Slurm steps.

The import package of the `piolet` command, of `pioletd` and of the image service.
"""

__version__ = "0.1.0"
