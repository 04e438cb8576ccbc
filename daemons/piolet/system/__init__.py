"""The kernel: its calls, processes, peers of sockets, mounts."""
