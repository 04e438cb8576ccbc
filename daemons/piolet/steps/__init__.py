"""Jobs and steps: what the kernel says of them."""
