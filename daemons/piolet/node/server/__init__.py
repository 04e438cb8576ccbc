"""pioletd: what runs as an account without privileges."""
