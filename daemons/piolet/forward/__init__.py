"""`piolet-forward`: takes what pioletd spooled on a node to the central service, under an account of its own."""
