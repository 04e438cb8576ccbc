"""One file per source of figures; each imports nothing of Piolet but piolet.api."""
