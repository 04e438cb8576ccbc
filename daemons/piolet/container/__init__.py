"""What runs as the job's user to build a container."""
