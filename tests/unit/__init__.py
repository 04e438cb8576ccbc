"""Unit tests: each folder is a room of daemons/piolet, or stands beside them."""
