"""What the vet step and its nodes agree on for meetings of several nodes."""

MEETING_VARIABLE = "SLURM_PIOLET_MEET"
"""What the nodes of one vetting share: a secret, a colon, and a directory that all of them see."""
START_S = 15.0
"""What nodes may need before their budget begins."""
