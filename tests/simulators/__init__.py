"""What stands in for hardware, hung file systems and kernels that refuse."""
