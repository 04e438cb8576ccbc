"""What the site has set: the whole of `piolet.toml`."""
