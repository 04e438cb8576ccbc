"""`piolet-forward`: takes a node's events to the central service. It parses no message but that service's answers."""
