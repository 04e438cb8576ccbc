"""One file per detector; each imports nothing of Piolet but piolet.api, and what detectors share (_signals.py)."""
