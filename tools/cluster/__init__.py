"""A private Slurm cluster on one machine, to play with and to test on: `python -m tools.cluster --help`.

Everything runs on loopback, as children of one control group, without systemd, and beside whatever
Slurm the machine may have. The standard library is all that it needs.
"""
