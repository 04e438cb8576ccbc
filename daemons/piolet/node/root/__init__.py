"""pioletd: what runs as root."""
