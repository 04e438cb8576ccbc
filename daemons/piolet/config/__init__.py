"""How a section of `piolet.toml` is defined, read and checked; each domain has its own in its settings.py."""
